"""What every test runs under: eight CPU devices, no silent rank promotion, no display, settled examples.

The variables are set before anything imports jax, which reads them once.
"""

import os
import shutil
import sys
import tempfile

NUM_DEVICES = 8
FLAG = '--xla_force_host_platform_device_count'
# On a busy machine eight threads may take longer to meet than the 40 s after which XLA ends the process.
PATIENCE = '--xla_cpu_collective_call_terminate_timeout_seconds=600'

if FLAG not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAG}={NUM_DEVICES} {PATIENCE}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['MPLBACKEND'] = 'Agg'

# What one process of tests has compiled no other compiles again. The first of them, which starts the others, makes it.
CACHE = 'PAD_JAX_TESTS_CACHE'
OWNS_CACHE = CACHE not in os.environ
if OWNS_CACHE:
    os.environ[CACHE] = tempfile.mkdtemp(prefix='pad_jax_tests_')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.environ[CACHE])

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# Runs that several folders of tests read, trained once in a process.
from tests.training.fixtures import (  # noqa: E402, F401
    finished_run,
    finished_text_run,
    one_block,
    one_layer,
    refused,
    texts,
    traced_once,
)

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Tests compile much longer than they compute. `make test-all` and the processes that tests start optimise.
if 'JAX_DISABLE_MOST_OPTIMIZATIONS' not in os.environ:
    jax.config.update('jax_disable_most_optimizations', True)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

# No deadline: the first example of a test pays for its compilation. Derandomised on a build machine, so that
# a failure there is a failure here; at a desk new examples are tried every time.
hypothesis.settings.register_profile('desk', deadline=None)
hypothesis.settings.register_profile('ci', deadline=None, derandomize=True)
hypothesis.settings.load_profile('ci' if os.environ.get('CI') else 'desk')


@pytest.fixture(scope='module', autouse=True)
def release_executables():
    """Drops programs before they are too many: each keeps memory maps, of which a process may have 65 thousand."""
    yield
    if count_memory_maps() > 8_000:
        jax.clear_caches()


def count_memory_maps():
    try:
        with open('/proc/self/maps') as maps:
            return sum(1 for _ in maps)
    except OSError:  # not on Linux
        return sys.maxsize


def pytest_unconfigure():
    if OWNS_CACHE:
        shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True)
