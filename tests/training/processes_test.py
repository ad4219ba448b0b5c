"""Several processes: what they agree on, by threads that stand in for them, and real ones that train together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.training import lock, processes
from pad_jax.training.cli import OTHERS_ENDED, Parser, exit_status, parse_with_overrides
from pad_jax.training.config import load_config
from pad_jax.training.lock import LOCK, WorkdirLock
from pad_jax.training.processes import AgreedProblem, add_flags, all_or_none, check_same, join
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.training.fixtures import IN_ROUNDS
from tests.training.tiny import DIGITS, GLUE, ROOT, SMALL
from tests.training.tiny_texts import TEXT_ROUNDS, small_text_config, small_text_flags
from tests.training.trainer_test import load_state

SMALL_TRAIN = ROOT / 'tests' / 'training' / 'small_train.py'
SHORT = SMALL | {
    'train.steps': 3,
    'train.checkpoint_every_steps': 2,
    'train.eval_every_steps': 3,
    'partition.start_step': 1,
}


class Several:
    """Threads in the place of processes: each runs the same function, and gathers the values of all."""

    def __init__(self, monkeypatch, count):
        self.count, self.here, self.values = count, threading.local(), [None] * count
        self.barrier = threading.Barrier(count, timeout=10)
        monkeypatch.setattr(jax, 'process_count', lambda: count)
        monkeypatch.setattr(jax, 'process_index', lambda: self.here.index)
        monkeypatch.setattr(processes, 'gather', self.gather)

    def gather(self, value):
        self.values[self.here.index] = json.loads(json.dumps(value))
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found

    def run(self, function):
        """Results or errors of `function(index)` on each of them."""
        found = [None] * self.count

        def one(index):
            self.here.index = index
            try:
                found[index] = function(index)
            except Exception as error:
                found[index] = error

        threads = [threading.Thread(target=one, args=(index,)) for index in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        return found


def test_bad_input_of_one_is_that_of_all(monkeypatch):
    """If all have the same, it is said once. One process keeps its own error."""
    with pytest.raises(BadInput) as caught, all_or_none():
        raise BadInput('mine')
    assert type(caught.value) is BadInput

    def body(index, failing):
        with all_or_none():
            if index in failing:
                raise BadInput('no data')
        return index

    several = Several(monkeypatch, 3)
    cases = ([1], 'on process 1: no data'), ([1, 2], 'on process 1: no data'), ([0, 1, 2], 'no data')
    for failing, says in cases:
        for found in several.run(lambda index, failing=failing: body(index, failing)):
            assert type(found) is AgreedProblem and str(found) == says
    assert several.run(lambda index: body(index, [])) == [0, 1, 2]


def test_disagreements_name_the_keys_on_every_process(monkeypatch):
    configs = [{'seed': 0, 'rate': 0.1}, {'seed': 0, 'rate': 0.1}, {'seed': 3, 'rate': 0.1, 'more': None}]
    for found in Several(monkeypatch, 3).run(lambda index: check_same('config', configs[index])):
        assert str(found) == (
            "the processes disagree on the config: more: 'missing' on process 0, None on process 2; "
            'seed: 0 on process 0, 3 on process 2'
        )
    assert Several(monkeypatch, 2).run(lambda index: check_same('config', configs[0])) == [None, None]


def test_a_workdir_has_to_be_the_same_folder_for_all(monkeypatch, tmp_path):
    def check(index, workdir):
        with WorkdirLock(workdir) as held:
            held.take_together()
            return several.gather(sorted(path.name for path in workdir.iterdir()))[index]

    monkeypatch.setattr(lock, 'SECONDS_TO_APPEAR', 0.1)
    several = Several(monkeypatch, 3)
    for found in several.run(lambda index: check(index, tmp_path / f'disk{index == 2}' / 'run')):
        assert isinstance(found, AgreedProblem)
        assert str(found).startswith(f'on process 2: workdir {tmp_path}/diskTrue/run on ')
        assert str(found).endswith('is not the folder that process 0 writes into. It must be on storage that all '
                                   'processes share')  # fmt: skip
    assert list(tmp_path.rglob('*')) == []
    (tmp_path / LOCK).write_text('{"host": "elsewhere"}')  # that of a run that was killed
    assert several.run(lambda index: check(index, tmp_path)) == [[LOCK]] * 3
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_appears_late_is_waited_for(monkeypatch, tmp_path):
    several, read, asked = Several(monkeypatch, 2), WorkdirLock._read_holder, []

    def read_late(self):
        asked.append(several.here.index)
        return {} if asked[-1] == 1 and asked.count(1) == 1 else read(self)

    def check(index):
        with WorkdirLock(tmp_path) as held:
            held.take_together()
            several.gather(None)

    monkeypatch.setattr(WorkdirLock, '_read_holder', read_late)
    assert several.run(check) == [None, None] and asked.count(1) == 2


def test_processes_share_the_processors_that_they_may_both_run_on(monkeypatch):
    places = [('a', range(16)), ('a', range(16)), ('a', range(16)), ('b', range(16)), ('b', range(16, 20)), ('c', [7])]
    places.append(places[-1])
    several = Several(monkeypatch, len(places))
    monkeypatch.setattr(socket, 'gethostname', lambda: places[several.here.index][0])
    monkeypatch.setattr(processes, 'usable_processors', lambda: list(places[several.here.index][1]))
    assert several.run(lambda index: processes.count_own_processors()) == [5, 5, 5, 16, 4, 1, 1]


def test_the_first_process_answers_for_all(monkeypatch):
    def ask(index):
        return processes.ask_first(lambda: {'steps': [index, 'κ']})

    def fail(index):
        raise BadInput('no checkpoint')

    several = Several(monkeypatch, 3)
    assert several.run(ask) == [{'steps': [0, 'κ']}] * 3
    for found in several.run(lambda index: processes.ask_first(lambda: fail(index))):
        assert type(found) is AgreedProblem and str(found) == 'on process 0: no checkpoint'


@pytest.mark.parametrize(
    ('flags', 'got'),
    [
        ('--num-processes=2', 'None, 2 and None'),
        ('--coordinator=auto --process-id=0', 'auto, None and 0'),
        ('--coordinator=here:1 --process-id=0', 'here:1, None and 0'),
        ('--coordinator=here --num-processes=2 --process-id=0', 'here, 2 and 0'),
        ('--coordinator=here:x --num-processes=2 --process-id=0', 'here:x, 2 and 0'),
        ('--coordinator=here:1 --num-processes=2 --process-id=2', 'here:1, 2 and 2'),
    ],
)
def test_flags_that_do_not_go_together(flags, got):
    parser = Parser()
    add_flags(parser)
    flags, _ = parse_with_overrides(parser, flags.split())
    says = '--coordinator must be auto, or HOST:PORT with --num-processes=N and --process-id from 0 to N - 1; got '
    with pytest.raises(BadInput, match=f'{says}{got}$'):
        join(flags.coordinator, flags.num_processes, flags.process_id, flags.join_seconds)


def test_a_port_that_is_taken():
    with socket.create_server(('', 0)) as taken:
        port = taken.getsockname()[1]
        says = f'process 0 cannot listen on port {port} of --coordinator=localhost:{port}: '
        with pytest.raises(BadInput, match=says):
            join(f'localhost:{port}', 2, 0, 5)


# What jax 0.10 says on CPU; the first is a process that was killed.
GLOO = (
    'INTERNAL: Error dispatching computation: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:538] '
)


@pytest.mark.parametrize(
    ('error', 'lost'),
    [
        (jax.errors.JaxRuntimeError(f'{GLOO}Read error [127.0.0.1]:2454: Connection reset by peer'), True),
        (jax.errors.JaxRuntimeError(f'{GLOO}Connection closed by peer [127.0.0.1]:2454'), True),
        (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'), False),
        (OSError('Gloo all-reduce failed: Connection reset by peer'), False),
    ],
)
def test_a_lost_connection_is_a_line_and_no_traceback(monkeypatch, capsys, error, lost):
    def leave(status):
        raise SystemExit(status)

    def command():
        raise error

    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(processes.os, '_exit', leave)
    with pytest.raises(SystemExit) as left:
        exit_status(command)
    said = capsys.readouterr().err.splitlines()
    assert left.value.code == 1
    if lost:
        assert said == [f'process 0 of 1 {OTHERS_ENDED}']
    else:
        assert said[0].startswith('Traceback') and said[-1] == 'process 0 of 1 ends by itself'


def free_port():
    with socket.create_server(('', 0)) as found:
        return found.getsockname()[1]


def start(workdir, index, changes, *, port, count=2, devices=1, more=(), config=DIGITS):
    """One process of a run; `changes` are config keys."""
    changes = SHORT | changes if config == DIGITS else changes
    flags = [f'--config.{name}={value}' for name, value in changes.items()]
    together = [f'--coordinator=localhost:{port}', f'--num-processes={count}', f'--process-id={index}', *more]
    environment = os.environ | {
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    }
    command = [sys.executable, SMALL_TRAIN, f'--config={config}', f'--workdir={workdir}', *flags, *together]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(running, timeout=240):
    """[(status, lines of stderr)] of processes, which have to come to their end."""
    try:
        found = [process.communicate(timeout=timeout)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, said.splitlines()) for process, said in zip(running, found, strict=True)]


def run_two(workdir, changes, **options):
    port = free_port()
    each = changes if isinstance(changes, list) else [changes] * 2
    return end([start(workdir, index, each[index], port=port, **options) for index in range(2)])


def small(changes=None):
    return load_config(str(DIGITS), [f'{name}={value}' for name, value in (SHORT | (changes or {})).items()])


def assert_same_rows(workdir, other, rtol=1e-5):
    for row, theirs in zip(read_metrics(workdir), read_metrics(other), strict=True):
        assert row.pop('split') == theirs.pop('split')
        assert row == pytest.approx(theirs, rel=rtol, abs=1e-7)


def assert_close(workdir, other, rtol=1e-5):
    """Masks to the bit, the rest to what float32 may differ by in another order of addition."""
    assert (workdir / 'partition.json').read_text() == (other / 'partition.json').read_text()
    assert_same_rows(workdir, other, rtol)
    states = [load_state(folder, small()) for folder in (workdir, other)]
    jax.tree.map(np.testing.assert_array_equal, *(state.masks for state in states))
    assert 0 < sum(int(mask.sum()) for mask in jax.tree.leaves(states[0].masks)) < 288
    for name in ('params', 'batch_stats', 'optimizer_state'):
        jax.tree.map(
            lambda one, two: np.testing.assert_allclose(one, two, rtol=rtol, atol=rtol / 10),
            *(getattr(state, name) for state in states),
        )


@pytest.mark.usefixtures('one_block')
def test_two_processes_train_what_one_trains(finished_run, tmp_path):
    """With rounds of the partition and a checkpoint in the middle. Only the first says and writes anything."""
    workdir = tmp_path / 'two'
    rounds = {name.replace('__', '.'): value for name, value in IN_ROUNDS.items()}
    (first, said), (second, silent) = run_two(workdir, SMALL | rounds)
    assert first == second == 0, (said, silent)
    assert any(line.startswith('train: done: 6 steps') for line in said)
    assert not any(line.startswith('train') for line in silent)
    assert_close(workdir, finished_run, rtol=1e-3)
    assert (workdir / 'config.json').read_text() == (finished_run / 'config.json').read_text()
    assert {path.name for path in workdir.iterdir()} == {path.name for path in finished_run.iterdir()}


@pytest.mark.slow
@pytest.mark.usefixtures('one_block')
def test_two_processes_of_two_devices_train_compact_what_one_trains(tmp_path):
    """By shard_map; checkpoints move from two processes to one and back, masked as they are stored."""
    changes = {'parallel': 'shard_map', 'partition.compact': True}

    def one(workdir):
        train(small(changes), workdir, devices=jax.local_devices()[:4])

    def two(workdir):
        assert [status for status, _ in run_two(workdir, changes, devices=2)] == [0, 0]

    one(tmp_path / 'one')
    for name, begin, resume in (('two_one', two, one), ('one_two', one, two)):
        workdir = tmp_path / name
        begin(workdir)
        assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['2', '3']
        shutil.rmtree(workdir / 'checkpoints' / '3')
        resume(workdir)
        assert_close(workdir, tmp_path / 'one')


@pytest.mark.slow
@pytest.mark.usefixtures('one_layer')
def test_two_processes_fine_tune_what_one_fine_tunes(texts, tmp_path):
    """Each evaluates its rows of every batch; what metrics need comes from all of them."""
    changes = dict(flag.split('=', 1) for flag in small_text_flags(texts, **TEXT_ROUNDS))
    found = run_two(tmp_path / 'two', changes, config=GLUE)
    assert [status for status, _ in found] == [0, 0], found
    train(small_text_config(texts, **TEXT_ROUNDS), tmp_path / 'one', devices=jax.local_devices()[:2])
    assert (tmp_path / 'two' / 'partition.json').read_text() == (tmp_path / 'one' / 'partition.json').read_text()
    assert_same_rows(tmp_path / 'two', tmp_path / 'one')


def start_endless(workdir):
    """Two processes that have written their first row."""
    changes = {'train.steps': 10**6, 'train.checkpoint_every_steps': 10**6, 'train.eval_every_steps': 10**6}
    port, end = free_port(), time.monotonic() + 120
    running = [start(workdir, index, changes, port=port) for index in range(2)]
    while not read_metrics(workdir):
        assert time.monotonic() < end and all(process.poll() is None for process in running)
        time.sleep(0.2)
    return running


@pytest.mark.slow
@pytest.mark.parametrize(('victim', 'number'), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_a_signal_to_one_ends_both_after_the_same_step(tmp_path, victim, number):
    workdir = tmp_path / 'run'
    running = start_endless(workdir)
    running[victim].send_signal(number)
    (first, said), (second, _) = end(running)
    assert first == second == 143
    (line,) = [line for line in said if 'SIGTERM: checkpoint' in line]
    (checkpoint,) = (workdir / 'checkpoints').iterdir()
    assert line == f'train: SIGTERM: checkpoint of step {checkpoint.name} is written'


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_ends_after_the_death_of_the_other(tmp_path, victim):
    running = start_endless(tmp_path / 'run')
    running[victim].kill()
    status, said = end(running, timeout=processes.HEARTBEAT_SECONDS + 60)[1 - victim]
    assert status in (1, -signal.SIGABRT)
    assert any(OTHERS_ENDED in line or 'another task died' in line for line in said)


@pytest.mark.slow
def test_two_processes_that_are_refused_both_say_why(tmp_path):
    """In one line each; gloo may say something too."""
    found = run_two(tmp_path / 'run', [{'train.seed': 1}, {'train.seed': 2, 'data.batch_size': 31}], devices=2)
    assert [status for status, _ in found] == [2, 2]
    for _, said in found:
        (line,) = [line for line in said if line.startswith('error: ')]
        assert 'the processes disagree on the config: data.batch_size: 16 on process 0, 31 on process 1; train' in line
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1])
def test_a_process_that_waits_for_others_in_vain(tmp_path, index):
    process = start(tmp_path / 'run', index, {}, port=free_port(), more=['--join-seconds=2'])
    ((status, said),) = end([process])
    assert status == 2 and len(said) == 1
    assert said[0].startswith('error: waited 2 s at --coordinator=localhost:')
    assert 'process 0 cannot be reached, or not all processes came' in said[0]


@pytest.mark.slow
def test_a_command_that_finds_no_cluster(tmp_path):
    command = ['train.py', f'--config={DIGITS}', f'--workdir={tmp_path}/run', '--coordinator=auto']
    found = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.count('\n') == 1
    assert '--coordinator=auto finds no TPU pod, Slurm or Open MPI' in found.stderr
