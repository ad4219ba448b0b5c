"""Layers on meshes whose axes are explicit, as `jax.make_mesh` makes them."""

import functools
from collections.abc import Callable

import jax
from flax.core.scope import LazyRng
from jax.sharding import AxisType, PartitionSpec, auto_axes, get_abstract_mesh, reshard, use_abstract_mesh


def on_any_mesh(call: Callable) -> Callable:
    """Let `__call__` of a Flax module run where mesh axes are explicit and operations ask for their shardings.

    The compiler then chooses the shardings inside the module. The first output keeps the sharding of the first input,
    except for its last axis. Other outputs are replicated, and so are the parameters that `init` draws.
    """

    @functools.wraps(call)
    def run(self, x, *inputs, **options):
        if get_abstract_mesh().empty:  # without jax.set_mesh an array can still bring its mesh
            meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves((x, self.variables)))
            mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
            if mesh is not None:
                with use_abstract_mesh(mesh):
                    return run(self, x, *inputs, **options)
        if AxisType.Explicit not in get_abstract_mesh().axis_types:
            return call(self, x, *inputs, **options)
        leaves, structure = jax.tree.flatten((x, inputs, options))
        is_array = [isinstance(leaf, jax.Array) for leaf in leaves]

        def fill(arrays):
            """Put arrays into the arguments, whose other leaves are Python values and stay as they are."""
            arrays = iter(arrays)
            filled = [next(arrays) if found else leaf for leaf, found in zip(leaves, is_array, strict=True)]
            return structure.unflatten(filled)

        arrays = [leaf for leaf, found in zip(leaves, is_array, strict=True) if found]
        if self.is_initializing():
            x, inputs, options = fill(reshard(arrays, PartitionSpec()))
            return call(self, x, *inputs, **options)
        module, streams = self.clone(parent=None, name=None), self.scope.rngs

        def apply(variables, keys, arrays):
            x, inputs, options = fill(arrays)
            rngs = {name: LazyRng(key, streams[name].suffix) for name, key in keys.items()}
            found, sown = module.apply(variables, x, *inputs, **options, rngs=rngs, mutable=['intermediates'])
            return (found[0], (found[1:], sown)) if isinstance(found, tuple) else (found, ((), sown))

        shardings = PartitionSpec(*jax.typeof(x).sharding.spec[:-1]), PartitionSpec()
        keys = {name: stream.rng for name, stream in streams.items()}
        first, (others, sown) = auto_axes(apply, out_sharding=shardings)(self.variables, keys, arrays)
        if self.is_mutable_collection('intermediates'):
            for name, value in sown.get('intermediates', {}).items():
                self.put_variable('intermediates', name, value)
        return (first, *others) if others else first

    return run
