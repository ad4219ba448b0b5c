"""Compiling for tests: tiny arrays, many shapes, so time goes into the compiler and not into the result."""

import functools

import jax

QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
jit_quickly = functools.partial(jax.jit, compiler_options=QUICK)
