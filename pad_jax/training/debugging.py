"""Where a NaN comes from: the operation, and the line of the model that asked for it.

A compiled step says only that its result holds one. Run operation by operation, the way back included, the first
operation that makes one is found; what an operation of the way back was derived from is a line of the way forward.
"""

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

# Primitives that only call what they hold, under the name of the parameter that holds it.
_CALLS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
_LOOPS = ('scan', 'while', 'cond')
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ('purelib', 'platlib', 'stdlib')})


def find_nan(function: Callable, *arguments) -> str | None:
    """The first operation of `function(*arguments)` that makes a NaN of numbers, in words; None if there is none.

    Loops count as one operation. A NaN among the arguments is not made here.

    Args:
      function: of pytrees of arrays, without a mapped axis.

    >>> import jax.numpy as jnp
    >>> find_nan(lambda x: jnp.log(x) * 2, jnp.float32(-1))  # doctest: +ELLIPSIS
    'log in <lambda> (<doctest ...>, line 1)'
    >>> find_nan(jnp.log, jnp.float32(1))
    """
    closed = jax.make_jaxpr(function)(*arguments)
    with jax.debug_nans(False):
        return _search(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))[0]


def _search(jaxpr, consts, arguments) -> tuple[str | None, list[Any]]:
    """What made the first NaN, and all outputs if nothing did."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        inner = _called(equation)
        if inner is None:
            outputs = _apply(jaxpr, equation, inputs)
            if _holds(jnp.isnan, outputs) and not _holds(jnp.isnan, inputs):
                return _describe(equation, inputs), []
        else:
            found, outputs = _search(inner.jaxpr, inner.consts, inputs)
            if found:
                return found, []
        values.update(zip(equation.outvars, outputs, strict=True))
    return None, [read(atom) for atom in jaxpr.outvars]


def _apply(jaxpr, equation, inputs) -> list[Any]:
    """Outputs of one equation of a jaxpr, run by itself."""
    places = [place for place, atom in enumerate(equation.invars) if not isinstance(atom, Literal)]
    alone = jaxpr.replace(
        constvars=[],
        invars=[equation.invars[place] for place in places],
        outvars=equation.outvars,
        eqns=[equation],
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, []))(*(inputs[place] for place in places))


def _called(equation):
    """The function that an equation only calls, or None."""
    if equation.primitive.name in _LOOPS:
        return None
    held = next((equation.params[name] for name in _CALLS if name in equation.params), None)
    if held is None or (len((held.jaxpr if hasattr(held, 'consts') else held).invars) != len(equation.invars)):
        return None
    return held if hasattr(held, 'consts') else ClosedJaxpr(held, [])


def _holds(test: Callable, values) -> bool:
    numbers = [value for value in values if jnp.issubdtype(jax.typeof(value).dtype, jnp.inexact)]
    return any(bool(test(value).any()) for value in numbers)


def _describe(equation, inputs) -> str:
    scope = f', {equation.source_info.name_stack}' if str(equation.source_info.name_stack) else ''
    of = ' of infinities' if _holds(jnp.isinf, inputs) else ''
    return f'{equation.primitive.name}{of} in {_find_line(equation.source_info.traceback)}{scope}'


def _find_line(traceback) -> str:
    """The innermost place that is no library's, where the operation was asked for."""
    frames = traceback.frames if traceback is not None else []
    for frame in frames:
        if not frame.file_name.startswith(_LIBRARIES):
            return f'{frame.function_name} ({_shorten(frame.file_name)}, line {frame.line_num})'
    return 'a library'


def _shorten(file_name: str) -> str:
    parts = Path(file_name).parts
    return str(Path(*parts[parts.index('pad_jax') :])) if 'pad_jax' in parts else file_name
