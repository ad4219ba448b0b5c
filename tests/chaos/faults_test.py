"""Other faults of whole processes: signals, full disks, other devices."""

import os
import signal
import subprocess
import time

import pytest

from pad_jax.training.workdir import read_metrics
from tests.chaos.chaos import ROUNDS, Runs, compare, resnet

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp('faults')
    runs = Runs(root, resnet(root))
    status, errors, _ = runs.finish(root / 'straight')
    assert not status, errors
    return runs


@pytest.fixture
def straight(runs):
    return runs.root / 'straight'


def wait_for_step(workdir, step, process):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if any(row['step'] >= step for row in read_metrics(workdir)):
            return
        time.sleep(0.01)
    raise AssertionError(f'step {step} never came: {process.communicate()[1]}')


def test_a_second_signal_stops_at_once(runs, tmp_path):
    """While the first waits for the end of the step."""
    process = runs.start(tmp_path / 'run', '--config.train.steps=1000000')
    wait_for_step(tmp_path / 'run', 2, process)
    os.kill(process.pid, signal.SIGSTOP)  # both signals come before the step is done
    process.send_signal(signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(timeout=60) in (-signal.SIGTERM, 143)
    finally:
        process.kill()


@pytest.fixture
def small_disk(tmp_path):
    """(folder of a disk, function that sets its kilobytes)."""
    folder = tmp_path / 'disk'
    folder.mkdir()

    def change(kilobytes):
        options = f'{"remount," * folder.is_mount()}size={kilobytes}k'
        return subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], capture_output=True)

    if os.geteuid() or change(4000).returncode:
        pytest.skip('only root may mount a small disk')
    yield folder, change
    subprocess.run(['umount', '-l', folder], check=True)


# From one that takes no checkpoint to one that the last but one doesn't fit on.
@pytest.mark.parametrize('kilobytes', [60, 100, 150, 200, 250, 300, 350])
def test_a_full_disk_stops_with_a_line_and_room_resumes(runs, straight, small_disk, kilobytes):
    folder, change = small_disk
    change(kilobytes)
    status, errors, _ = runs.finish(folder / 'run')
    lines = [line for line in errors.splitlines() if not line.startswith('train: ')]
    assert status == 1 and len(lines) == 1, errors
    assert lines[0].startswith('error: ') and 'No space left on device; once that is mended' in lines[0]
    assert not [path for path in (folder / 'run' / 'checkpoints').glob('*') if not path.name.isdecimal()]
    change(4000)
    status, errors, _ = runs.finish(folder / 'run')
    assert not status, errors
    compare(folder / 'run', straight)


def test_devices_and_forms_change_under_a_run(runs, tmp_path):
    """One, eight, one again, pmap and shard_map: the numbers stay equal up to the order of sums."""
    eight = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
    stages = [({}, 'pmap'), (eight, 'pmap'), (eight, 'shard_map'), ({}, 'shard_map'), ({}, 'pmap')]
    for number, (environment, form) in enumerate(stages):
        last = number + 1 == len(stages)
        process = runs.start(tmp_path / 'run', f'--config.parallel={form}', **environment)
        if not last:
            wait_for_step(tmp_path / 'run', 4 * number + 2, process)
            process.send_signal(signal.SIGTERM)
        errors = process.communicate()[1]
        assert process.returncode == (0 if last else 143), errors
    rows = [row for row in read_metrics(tmp_path / 'run') if row['split'] == 'train']
    expected = [row for row in read_metrics(runs.root / 'straight') if row['split'] == 'train']
    assert [row['step'] for row in rows] == list(range(1, ROUNDS['train.steps'] + 1))
    assert [row['loss'] for row in rows] == pytest.approx([row['loss'] for row in expected], rel=2e-2)
