"""Other faults of whole processes: signals, disks, devices, damage, a second run."""

import contextlib
import os
import re
import shutil
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


@contextlib.contextmanager
def endless(runs, workdir):
    """A run that is stopped by what happens in the `with` block."""
    process = runs.start(workdir, '--config.train.steps=1000000')
    try:
        wait_for_step(workdir, 2, process)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(('number', 'expected'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_and_resumes(runs, straight, tmp_path, number, expected):
    process = runs.start(tmp_path / 'run')
    wait_for_step(tmp_path / 'run', 4, process)
    process.send_signal(number)
    errors = process.communicate()[1]
    assert process.returncode == expected, errors
    step = re.search(rf'{number.name}: checkpoint of step (\d+) is written', errors)[1]
    assert (tmp_path / 'run' / 'checkpoints' / step).is_dir()
    assert not runs.finish(tmp_path / 'run')[0]
    compare(tmp_path / 'run', straight)


def test_a_second_signal_stops_at_once(runs, tmp_path):
    """While the first waits for a step that never ends."""
    with endless(runs, tmp_path / 'run') as process:
        os.kill(process.pid, signal.SIGSTOP)  # both signals come before the step is done
        process.send_signal(signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (-signal.SIGTERM, 143)


def damage(folder, kind):
    files = [path for path in folder.rglob('*') if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    if kind == 'truncated':
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif kind == 'a flipped byte':
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 0xFF
        largest.write_bytes(content)
    elif kind == 'a missing file':
        largest.unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize('kind', ['truncated', 'a flipped byte', 'a missing file', 'an empty folder'])
def test_a_damaged_checkpoint_is_passed_over(runs, straight, tmp_path, kind):
    workdir = shutil.copytree(straight, tmp_path / 'run')
    damage(workdir / 'checkpoints' / '24', kind)
    status, errors, _ = runs.finish(workdir)
    assert not status, errors
    (line,) = [line for line in errors.splitlines() if ' is damaged (' in line]
    assert 'checkpoints/24 is damaged (' in line and line.endswith(
        'that of step 21 replaces it; it is kept as 24.damaged'
    )
    shutil.rmtree(workdir / 'checkpoints' / '24.damaged')
    compare(workdir, straight)
    for folder in (workdir / 'checkpoints').iterdir():
        damage(folder, kind)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
    status, errors, _ = runs.finish(workdir)
    assert status == 2 and errors.count('\n') == 1 and 'holds no sound checkpoint (24: ' in errors, errors
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before


def test_a_second_run_is_refused_and_a_killed_one_no_hindrance(runs, tmp_path):
    with endless(runs, tmp_path / 'run') as first:
        status, errors, _ = runs.finish(tmp_path / 'run', '--config.train.steps=1000000')
        assert status == 2 and errors.count('\n') == 1, errors
        assert f'is in use by a run on {os.uname().nodename}, process {first.pid}, since 20' in errors
    with endless(runs, tmp_path / 'run') as third:
        assert third.poll() is None


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(kilobytes)` makes and resizes it, `small_disk('ro')` makes it read-only: a folder."""
    folder = tmp_path / 'disk'
    folder.mkdir()

    def change(kilobytes):
        options = kilobytes if isinstance(kilobytes, str) else f'size={kilobytes}k'
        again = 'remount,' if folder.is_mount() else ''
        return subprocess.run(['mount', '-t', 'tmpfs', '-o', again + options, 'tmpfs', folder], capture_output=True)

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


def test_a_disk_that_turns_read_only(runs, small_disk):
    folder, change = small_disk
    with endless(runs, folder / 'run') as process:
        # Refused while files are open for writing: as a disk does that fails.
        if change('ro').returncode:
            pytest.skip('this system does not turn a disk in use read-only')
        errors = process.communicate(timeout=100)[1]
        assert process.returncode == 1 and errors.splitlines()[-1].startswith('error: '), errors
    change('rw')


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
