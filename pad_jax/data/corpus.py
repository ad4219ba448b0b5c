"""Texts without labels as windows of tokens, to train language models from scratch.

`CORPUS_SOURCES` names two sources. `corpus` reads a file, a glob, or all regular files below a folder; names that begin
with a dot are left out. Files *.jsonl and *.json hold one JSON object a line and contribute their text column. Every
other file is text. `stdlib` reads the source files *.py of Python's standard library: the corpus of every machine.

A domain is one first-level folder, or `text` for the files outside of one. It is a stream: the tokens of its files, one
file after another. Window w of T tokens begins at token w·T of the stream; tokens after the last whole window are left
out. Some files of each domain, chosen by a hash of their names, are held out for evaluation.

Tokens stay on disk: a batch reads its windows at their places. So a corpus may be larger than the memory.
"""

import dataclasses
import functools
import glob
import hashlib
import logging
import os
import pathlib
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pad_jax.data.ordering import SCORING, Order
from pad_jax.data.source import ON_BAD, Batch, DataSpec, Source, make_digest, run_ahead
from pad_jax.data.tokens import Tokens, open_tokens
from pad_jax.errors import BadInput, check_choice, describe, quote
from pad_jax.files import open_plain, reach

OBJECTIVES = ('causal', 'masked')
CORPUS_HOLDOUT = 0.05
"""Share of the files that is for evaluation, by default."""
NO_TARGET = -1
"""Label of a token that is not predicted."""
TOP_DOMAIN = 'text'

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Part:
    """Tokens in a file: `count` numbers of type `dtype`, from number `start`."""

    name: str  # of the text that they encode, relative to the corpus
    path: pathlib.Path
    start: int
    count: int
    num_bytes: int  # of the whole text
    bytes_per_token: float = 1.0
    dtype: str = 'uint8'

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the tokens [start, stop) of this part from the disk."""
        size = np.dtype(self.dtype).itemsize
        try:
            tokens = np.fromfile(self.path, self.dtype, stop - start, offset=(self.start + start) * size)
        except OSError as error:
            raise BadInput(f'{quote(self.path)} cannot be read any more: {describe(error)}') from error
        if len(tokens) < stop - start:
            raise BadInput(f'{quote(self.path)} is shorter than at the start of this run. Leave a corpus as it is')
        return tokens


class Stream:
    """The tokens of parts of files, one part after another."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = tuple(part for part in parts if part.count)
        self._ends = np.cumsum([0, *(part.count for part in self.parts)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the tokens [start, stop), int32[stop - start]."""
        tokens = np.empty(stop - start, np.int32)
        number, place = int(np.searchsorted(self._ends, start, 'right')) - 1, start
        while place < stop:
            begin, end = int(self._ends[number]), min(int(self._ends[number + 1]), stop)
            tokens[place - start : end - start] = self.parts[number].read(place - begin, end - begin)
            number, place = number + 1, end
        return tokens

    @property
    def bytes_per_token(self) -> float:
        """Mean length of a token of the stream in bytes of text."""
        return sum(part.count * part.bytes_per_token for part in self.parts) / len(self)


@dataclasses.dataclass(frozen=True)
class Corpus(Source):
    """Batches of windows of T tokens.

    A batch has `tokens` int32[B, T], `valid` bool[B, T], all True, and `label` int32[B, T], the next tokens.
    Batches for evaluation also have `weight` float32[B], 0 for rows that fill the last batch of a domain.
    """

    train: Mapping[str, Stream]  # by domain
    held: Mapping[str, Stream]  # by domain
    tokens: Tokens
    window: int  # T, at least 2
    vocab_size: int
    batch_size: int  # B, at least 1
    seed: int  # of the order, in [0, 2⁶⁴)
    digests: Mapping[str, str]
    left_out: tuple[str, ...] = ()  # one line for each bad file or line

    @functools.cached_property
    def spec(self) -> DataSpec:
        return DataSpec(
            num_classes=self.vocab_size,
            class_names=(),
            num_train=sum(map(self._count_windows, self.train.values())),
            num_eval=sum(map(self._count_windows, self.held.values())),
            eval_splits=tuple(self.held),
            digests=self.digests,
            bytes_per_token={domain: stream.bytes_per_token for domain, stream in self.held.items()},
        )

    @property
    def num_eval_batches(self) -> int:
        return sum(-(-self._count_windows(stream) // self.batch_size) for stream in self.held.values())

    @property
    def skipped(self) -> list[str]:
        return list(self.left_out)

    @property
    def run_files(self) -> dict[str, Any]:
        return self.tokens.run_files

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """Make the batch of a step (at least 0), a pure function of (seed, step)."""
        windows = Order(self.spec.num_train, self.seed).indices(step, self.batch_size, rows)
        return self._make_batch(self._cut(self.train, windows))

    def train_batches(self, start: int, stop: int, rows: slice | None = None):
        return run_ahead(functools.partial(self.train_batch, rows=rows), start, stop)

    def scoring_batch(self, number: int, batch_size: int, rows: slice | None = None) -> Batch:
        windows = Order(self.spec.num_train, self.seed, SCORING).indices(number, batch_size, rows)
        return self._make_batch(self._cut(self.train, windows))

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        for domain in self.held if split is None else [split]:
            count = self._count_windows(self.held[domain])
            for start in range(0, count, self.batch_size):
                windows = np.arange(start, start + self.batch_size)[rows or slice(None)]
                batch = self._make_batch(self._cut({domain: self.held[domain]}, np.minimum(windows, count - 1)))
                weight = (windows < count).astype(np.float32)
                batch['label'] = np.where(weight[:, None] > 0, batch['label'], NO_TARGET)
                yield {**batch, 'weight': weight}

    def _count_windows(self, stream: Stream) -> int:
        return (len(stream) - 1) // self.window

    def _cut(self, streams: Mapping[str, Stream], windows: np.ndarray) -> np.ndarray:
        """Read windows, numbered through all streams, and the token after each; int64[b] -> int32[b, T + 1]."""
        firsts = np.cumsum([0, *map(self._count_windows, streams.values())])
        found, all_streams = np.empty((len(windows), self.window + 1), np.int32), list(streams.values())
        for row, window in enumerate(windows):
            stream = int(np.searchsorted(firsts, window, 'right')) - 1
            start = int(window - firsts[stream]) * self.window
            found[row] = all_streams[stream].read(start, start + self.window + 1)
        return found

    def _make_batch(self, text: np.ndarray) -> Batch:
        tokens, label = text[:, :-1].copy(), text[:, 1:].copy()
        return {'tokens': tokens, 'valid': np.ones(tokens.shape, bool), 'label': label}


def open_corpus(
    *,
    name: str = 'corpus',
    path: str | None = None,
    window: int,
    batch_size: int,
    vocab_size: int,
    seed: int = 0,
    on_bad: str = 'stop',
    holdout: float = 0.0,
    tokenizer: str = '',
    text_column: str = 'text',
    objective: str = 'causal',
) -> Corpus:
    """Open a corpus of texts.

    Args:
      name: key of `CORPUS_SOURCES`.
      path: a file, a folder or a glob; None for `stdlib`.
      window: tokens of an example, T, at least 2.
      batch_size: windows in a global batch, at least 1.
      vocab_size: size of the network's vocabulary, above the highest token.
      seed: in [0, 2⁶⁴); decides the order.
      on_bad: one of `ON_BAD`; `skip` leaves a bad file, a bad line or a domain that is too short out with a warning.
      holdout: share in [0, 1) of the files of each domain that is for evaluation, for all seeds; 0 for a twentieth.
      tokenizer: path of a tokenizer.json; empty for bytes.
      text_column: key of the text in JSON lines.
      objective: one of `OBJECTIVES`.

    Raises:
      BadInput: an argument is out of range, or the data is wrong.
    """
    check_choice('data name', name, CORPUS_SOURCES)
    check_choice('on_bad', on_bad, ON_BAD)
    check_choice('objective', objective, OBJECTIVES)
    for key, value, least in (('window', window, 2), ('batch_size', batch_size, 1)):
        if value < least:
            raise BadInput(f'{key} must be at least {least}, got {value}')
    if not 0 <= holdout < 1:
        raise BadInput(f'holdout must be in [0, 1), got {holdout}')
    tokens = open_tokens(tokenizer)
    if tokens.vocab_size > vocab_size:
        raise BadInput(f'vocab_size must be at least {tokens.vocab_size}, the number of tokens, got {vocab_size}')
    files = CORPUS_SOURCES[name](path)
    parts, bad = {}, []
    for domain, paths in files.items():
        for relative, file in paths.items():
            try:
                with open_plain(file) as opened:
                    size = os.fstat(opened.fileno()).st_size
            except OSError as error:
                bad.append(f'{quote(file)} cannot be read: {describe(error)}')
                if on_bad == 'stop':
                    raise BadInput(f"{bad[-1]} (on_bad='skip' leaves such files out)") from error
                continue
            parts.setdefault(domain, []).append(Part(relative, file, 0, size, size))
    train, held = {}, {}
    for domain, found in parts.items():
        train[domain], held[domain] = map(Stream, hold_out(found, holdout or CORPUS_HOLDOUT, window + 1))
        if min(len(train[domain]), len(held[domain])) <= window:
            total = len(train[domain]) + len(held[domain])
            least = f'{2 * (window + 1)} for a window of {window} to train on and one to evaluate on'
            bad.append(f'the texts in {domain!r} have {total} tokens: they need at least {least}')
            if on_bad == 'stop':
                raise BadInput(bad[-1])
            del train[domain], held[domain]
    if not train:
        raise BadInput(f'no text of {quote(path or name)} is left, the first: {bad[0]}')
    if bad:
        logger.warning('left out %d files or lines, the first: %s', len(bad), bad[0])
    digests = {
        f'files of {split}': make_digest(
            f'{domain}/{part.name}:{part.start}:{part.num_bytes}'.encode(errors='surrogateescape')
            for domain, stream in streams.items()
            for part in stream.parts
        )
        for split, streams in (('train', train), ('eval', held))
    }
    return Corpus(train, held, tokens, window, vocab_size, batch_size, seed, digests, tuple(bad))


def hold_out(parts: Sequence[Part], holdout: float, least: int) -> tuple[list[Part], list[Part]]:
    """Split the texts of a domain into those for training and those for evaluation.

    A text is held out if the hash of its name, a number in [0, 1), is below `holdout`. More follow in the order of
    their hashes until `least` tokens are held out. At least one text stays for training. A single text is divided: its
    last share is held out.
    """
    parts = [part for part in parts if part.count]
    if len(parts) == 1:
        [part] = parts
        count = min(max(round(part.count * holdout), least), part.count)
        left = part.count - count
        return [dataclasses.replace(part, count=left)], [
            dataclasses.replace(part, start=part.start + left, count=count)
        ]
    held, num_tokens = set(), 0
    for part in sorted(parts, key=lambda part: _hash_name(part.name))[:-1]:
        if _hash_name(part.name) >= holdout and num_tokens >= least:
            break
        held.add(part.name)
        num_tokens += part.count
    return [part for part in parts if part.name not in held], [part for part in parts if part.name in held]


def _hash_name(name: str) -> float:
    digest = hashlib.sha256(name.encode(errors='surrogateescape')).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _list_files(path: str | None) -> dict[str, dict[str, pathlib.Path]]:
    """List the files of a corpus by domain and relative name, sorted."""
    if not path:
        raise BadInput(f'path must name a text file, a folder of them, or a glob, got {path!r}')
    root = reach(path)
    if root.is_dir():
        files = _walk(root)
    elif root.exists() or not glob.has_magic(str(root)):
        if not root.is_file():
            raise BadInput(f'{quote(root)} {"is not a file or folder" if root.exists() else "does not exist"}')
        root, files = root.parent, [root]
    else:
        files = [pathlib.Path(file) for file in glob.glob(str(root), recursive=True)]
        while glob.has_magic(str(root)):
            root = root.parent
    domains = {}
    for relative in sorted(file.relative_to(root).as_posix() for file in files if file.is_file()):
        domain = relative.partition('/')[0] if '/' in relative else TOP_DOMAIN
        domains.setdefault(domain, {})[relative] = root / relative
    if not domains:
        raise BadInput(f'{quote(path)} holds no file: expected text files, or JSON lines (*.jsonl, *.json)')
    return domains


def _list_stdlib(path: str | None) -> dict[str, dict[str, pathlib.Path]]:
    if path:
        raise BadInput(f'path must be empty for stdlib, got {path!r}')
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    names = (file.relative_to(root) for file in _walk(root) if file.suffix == '.py')
    return {'stdlib': {name.as_posix(): root / name for name in sorted(names) if 'site-packages' not in name.parts}}


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith('.')]
        yield from (pathlib.Path(folder, name) for name in names if not name.startswith('.'))


CORPUS_SOURCES: dict[str, Callable[[str | None], dict[str, dict[str, pathlib.Path]]]] = {
    'corpus': _list_files,
    'stdlib': _list_stdlib,
}
"""Functions that list the files of a corpus by domain and relative name, by `data.name`."""
