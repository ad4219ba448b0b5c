"""What a run leaves in its workdir besides checkpoints: metrics.jsonl, TensorBoard events, JSON files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from pad_jax.errors import BadInput
from pad_jax.files import parse_json, read_plain


def check_writable(workdir: Path) -> None:
    """Checks what a run goes on writing into, as far as it is there already.

    JSON files are replaced, for which permission to write into the workdir is enough.

    Raises:
      BadInput: naming the file or folder that can't be written.
    """
    for name in ('checkpoints', 'tensorboard'):
        check_folder(workdir / name, to_write=True)
    metrics = workdir / 'metrics.jsonl'
    if metrics.exists() and not metrics.is_file():
        raise BadInput(f'{metrics} is not a file')
    if metrics.exists() and not os.access(metrics, os.R_OK | os.W_OK):
        raise BadInput(f'{metrics} cannot be written: no permission')


def check_folder(folder: Path, to_write: bool) -> None:
    """Raises BadInput for something that is there and is no folder, or none that can be used; nothing there is fine."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BadInput(f'{folder} is not a folder')
    if not os.access(folder, os.R_OK | os.X_OK | (os.W_OK if to_write else 0)):
        raise BadInput(f'{folder} cannot be {"written" if to_write else "read"}: no permission')


def write_json(path: Path, content: Any) -> None:
    """Replaces a JSON file in one step: a reader finds the old one or the new one, never half of it."""
    temporary = path.with_name(path.name + '.tmp')
    with temporary.open('w') as file:
        json.dump(content, file, indent=2)
        file.write('\n')
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a torn last line, left by a run that was killed, is not one.

    Raises:
      BadInput: for any other line that is no row.
    """
    path = workdir / 'metrics.jsonl'
    try:
        lines = read_plain(path).split(b'\n')[:-1] if path.exists() else []
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or type(row.get('step')) is not int or type(row.get('split')) is not str:
            start = line[:80].decode('utf-8', 'replace')
            raise BadInput(f'{path}, line {number}: not a row of metrics: {start!r}')
        rows.append(row)
    return rows


class MetricWriter:
    """Appends rows to metrics.jsonl and to TensorBoard.

    metrics.jsonl holds what a run computes, not how long it took, so that an interrupted and resumed run leaves the
    same bytes as one that was never interrupted.

    Args:
      workdir: exists.
      resumed_step: the step whose checkpoint the run goes on from, 0 at the start; later rows are dropped, as the run
        is about to write them again.

    Raises:
      BadInput: before anything is changed, when what is there can't be written.
    """

    def __init__(self, workdir: Path, resumed_step: int = 0):
        check_writable(workdir)
        path = workdir / 'metrics.jsonl'
        kept = [row for row in read_metrics(workdir) if _belongs(row, resumed_step)]
        temporary = path.with_name(path.name + '.tmp')
        temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
        temporary.replace(path)
        self._file = path.open('a')
        purge = resumed_step + 1 if resumed_step else None
        self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=purge)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One row: `step` (steps done), `split` (train, eval or partition), then values."""
        self._file.write(json.dumps({'step': step, 'split': split, **values}) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f'{split}/{name}', value, step)

    def write_board(self, step: int, name: str, value: float) -> None:
        """A value for TensorBoard alone."""
        self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoWriter:
    """In the place of a MetricWriter, for a process that is not the one that writes."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        pass

    def write_board(self, step: int, name: str, value: float) -> None:
        pass

    def close(self) -> None:
        pass


def _belongs(row: Mapping[str, Any], resumed_step: int) -> bool:
    # A round due after s steps comes when the checkpoint of s steps is already written.
    return row['step'] < resumed_step or (row['step'] == resumed_step and row['split'] != 'partition')
