"""Tables of measured plans as files: what `python -m pad_jax tune --table=FILE` writes and `model.plan_table` names."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from pad_jax.errors import BadInput, quote
from pad_jax.files import read_json
from pad_jax.layers import DROPLESS, MixtureCase, PartialCase, PlanTable, describe_case, list_plans, parse_case
from pad_jax.layers.plan_table import Case

FORMAT = 1


def read_plan_table(path: str) -> PlanTable | None:
    """The table in a file, measured on a device of this kind; None where the path is ''.

    Raises:
      BadInput: if there is none, it is none, it is of a newer format, or of another kind of device.
    """
    if not path:
        return None
    named = f'plan table {quote(path)}'
    try:
        content = read_json(Path(path))
    except FileNotFoundError:
        advice = 'python -m pad_jax tune --table=FILE makes one, --config.model.plan_table= does without'
        raise BadInput(f'{named} does not exist: {advice}') from None
    except OSError as error:
        raise BadInput(f'{named} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise BadInput(f'{named} is damaged: {error}') from error
    try:
        return _parse(content)
    except ValueError as error:
        raise BadInput(f'{named} {error}') from error


def write_plan_table(path: Path, table: PlanTable, milliseconds: Mapping[Any, Mapping[str, float]]) -> None:
    """Writes a table, whole or not at all.

    Args:
      milliseconds: of every plan of each case; for readers alone.

    Raises:
      BadInput: if it can't be written.
    """
    entries = [
        {**describe_case(case), 'plan': plan, 'milliseconds': dict(milliseconds[case])} for case, plan in table.plans
    ]
    content = {'format': FORMAT, 'device_kind': table.device_kind, 'jax': table.jax_version, 'entries': []}
    head, tail = json.dumps(content)[:-2], ']}\n'
    with _writing(path) as partial:
        # An entry a line, for readers and for diff.
        partial.write_text(head + '\n' + ',\n'.join(map(json.dumps, entries)) + '\n' + tail)
        os.replace(partial, path)


def check_writable(path: Path) -> None:
    """Refuses a path that no table can be written to, before anything is measured; creates its folder.

    Raises:
      BadInput: with the reason.
    """
    with _writing(path) as partial:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        partial.touch()


@contextlib.contextmanager
def _writing(path: Path):
    """A file beside the path, gone afterwards."""
    partial = path.with_name(f'{path.name}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
    except OSError as error:
        raise BadInput(f'plan table {quote(path)} cannot be written: {error.strerror}') from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def checksum(table: PlanTable | None) -> str:
    """The same for equal tables in all processes.

    >>> checksum(None)
    ''
    """
    return '' if table is None else hashlib.sha256(repr(table).encode()).hexdigest()


def list_choices(case: Case) -> list[str]:
    """The plans or dispatchers that `auto` may take; a partial convolution has one more, what `auto` takes by cost."""
    if isinstance(case, MixtureCase):
        return list(DROPLESS)
    if isinstance(case, PartialCase):
        return ['auto', *list_choices(case.whole)]
    return list_plans(case.x[0], case.by_place)


def _parse(content) -> PlanTable:
    if not isinstance(content, dict) or not isinstance(content.get('format'), int):
        raise ValueError('is none: it holds no object with a format')
    if content['format'] > FORMAT:
        raise ValueError(f'has format {content["format"]}, this version of pad_jax reads {FORMAT}')
    device_kind = jax.local_devices()[0].device_kind
    if content.get('device_kind') != device_kind:
        raise ValueError(
            f'was measured on {content.get("device_kind")!r}, this device is {device_kind!r}: run '
            'python -m pad_jax tune here, or do without by --config.model.plan_table='
        )
    entries = content.get('entries')
    if not isinstance(entries, list) or not isinstance(content.get('jax'), str):
        raise ValueError('is damaged: it lacks jax or entries')
    plans = {}
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f'is damaged: entry {number} is no object')
        try:
            case = parse_case(entry)
            allowed = list_choices(case)
        except ValueError as error:
            raise ValueError(f'is damaged: entry {number} is {error}') from error
        except (TypeError, IndexError) as error:
            raise ValueError(f'is damaged: entry {number} has no shapes of a {entry["kind"]}: {error}') from error
        if entry.get('plan') not in allowed:
            raise ValueError(f'has plan {entry.get("plan")!r} in entry {number}, allowed are {", ".join(allowed)}')
        plans[case] = entry['plan']
    return PlanTable(device_kind, content['jax'], tuple(plans.items()))
