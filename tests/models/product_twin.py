"""Slow, obvious: the multiply-adds of a traced function, from its convolutions and matrix products."""

import math

import jax


def count_products(function, *arguments):
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == 'conv_general_dilated':
            # For each output one product with every place of a kernel [kh, kw, C, F] except F.
            layout = equation.params['dimension_numbers'].rhs_spec
            total += math.prod(shapes[2]) * math.prod(shapes[1]) // shapes[1][layout[0]]
        elif equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            total += math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
        for value in equation.params.values():
            inner = getattr(value, 'jaxpr', value)
            total += _count(inner) if hasattr(inner, 'eqns') else 0
    return total
