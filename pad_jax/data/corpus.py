"""Texts without labels as windows of tokens, to train language models from scratch.

`CORPUS_SOURCES` names two sources. `corpus` reads a file, a glob, or all files below a folder, except hidden ones and
those in `SKIPPED_FOLDERS`. Links are followed. Files *.jsonl and *.json have one JSON object a line,
with the text in a column. Others are text. `stdlib` reads the source files *.py of the standard library of Python: the
corpus that every machine has.

A domain is one first-level folder, or `text` for the files outside of one. It is a stream: the tokens of its files, one
file after another. Window w of T tokens begins at token w·T of the stream; tokens after the last whole window are left
out. Masked windows of a tokenizer with [CLS] and [SEP] have these around T − 2 tokens, as BERT reads a text. Some files
of each domain, chosen by a hash of their names, are held out for evaluation.
"""

import dataclasses
import functools
import glob
import hashlib
import json
import logging
import os
import pathlib
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pad_jax.data.ordering import MASKING, MASKING_HELD, MASKING_SCORED, ORDER, SCORING, Order, draw_bits
from pad_jax.data.photos import walk
from pad_jax.data.source import ON_BAD, Batch, DataSpec, Source, make_digest
from pad_jax.data.streams import Part, Stream, open_parts
from pad_jax.data.tokenization import MASKS, Tokens, open_tokens
from pad_jax.errors import BadInput, check_choice, quote
from pad_jax.files import reach

CORPUS_SOURCES = ('corpus', 'stdlib')
"""Sources of texts without labels, by `data.name`."""
SKIPPED_FOLDERS = ('__pycache__', 'site-packages')
OBJECTIVES = ('causal', 'masked')
CORPUS_HOLDOUT = 0.05
"""Share of the texts that is for evaluation by default."""
MASKED_SHARE = 0.15
NO_TARGET = -1
"""Label of a token that is not predicted."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Corpus(Source):
    """Batches of windows of T tokens.

    A batch has `tokens` int32[B, T], `valid` bool[B, T], all True, and `label` int32[B, T]: the next tokens if the
    objective is causal; the tokens that `mask_tokens` hides, otherwise −1, if it is masked. Then there are also
    `segments` int32[B, T], all 0. Batches for evaluation have `weight` float32[B].
    """

    train: Mapping[str, Stream]  # by domain
    held: Mapping[str, Stream]  # by domain
    vocabulary: Tokens
    window: int  # T, at least 2
    vocab_size: int  # of the network
    objective: str  # one of `OBJECTIVES`
    batch_size: int  # B, at least 1
    seed: int  # of order and masked tokens, in [0, 2⁶⁴)
    ends: tuple[int, ...] = ()  # first and last token of each window, never masked; () for none
    skipped: Sequence[str] = ()  # one line for each bad file, line or domain

    @functools.cached_property
    def spec(self) -> DataSpec:
        parts = [part for streams in (self.train, self.held) for stream in streams.values() for part in stream.parts]
        bytes_per_token = {domain: stream.bytes_per_token for domain, stream in self.held.items()}
        return DataSpec(
            num_classes=self.vocab_size,
            class_names=(),
            num_train=sum(map(self._count_windows, self.train.values())),
            num_eval=sum(map(self._count_windows, self.held.values())),
            eval_splits=tuple(self.held),
            digests={
                'files of corpus': make_digest(os.fsencode(f'{part.name}\n{part.count}') for part in parts),
                'contents of tokenizer': make_digest([json.dumps(self.run_files).encode()]),
            },
            bytes_per_token=bytes_per_token if self.objective == 'causal' else {},  # masked: a part of the tokens
        )

    @property
    def num_eval_batches(self) -> int:
        return sum(-(-self._count_windows(stream) // self.batch_size) for stream in self.held.values())

    @property
    def run_files(self) -> dict[str, Any]:
        return self.vocabulary.run_files

    def train_batch(self, step: int, rows: slice | None = None, batch_size: int = 0, uses=(ORDER, MASKING)) -> Batch:
        """Make the batch of a step (at least 0), a pure function of (seed, step)."""
        batch_size = batch_size or self.batch_size
        windows = Order(self.spec.num_train, self.seed, uses[0]).indices(step, batch_size, rows)
        numbers = (step * batch_size + np.arange(batch_size))[rows or slice(None)]
        return self._make_batch(self.train, windows, self.seed, numbers, uses[1])

    def scoring_batch(self, number: int, batch_size: int, rows: slice | None = None) -> Batch:
        return self.train_batch(number, rows, batch_size, (SCORING, MASKING_SCORED))

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        for domain in self.held if split is None else [split]:
            count = self._count_windows(self.held[domain])
            for start in range(0, count, self.batch_size):
                numbers = np.arange(start, start + self.batch_size)[rows or slice(None)]
                windows = np.minimum(numbers, count - 1)
                # Seed 0: runs of all seeds are evaluated on the same hidden tokens.
                batch = self._make_batch({domain: self.held[domain]}, windows, 0, windows, MASKING_HELD)
                batch['label'][numbers >= count] = NO_TARGET
                yield {**batch, 'weight': (numbers < count).astype(np.float32)}

    def _count_windows(self, stream: Stream) -> int:
        stride = self.window - len(self.ends)
        return (len(stream) - (self.objective == 'causal')) // stride  # the last label is that of the next window

    def _make_batch(self, streams: Mapping[str, Stream], windows, seed: int, numbers, use: int) -> Batch:
        """Make the batch of `windows`, counted through all streams; `numbers` choose the hidden tokens; int64[b]."""
        firsts = np.cumsum([0, *map(self._count_windows, streams.values())])
        stride = self.window - len(self.ends)
        text = np.empty((len(windows), stride + (self.objective == 'causal')), np.int32)
        for row, (window, place) in enumerate(zip(windows, np.searchsorted(firsts, windows, 'right') - 1)):
            start = int(window - firsts[place]) * stride
            text[row] = list(streams.values())[place].read(start, start + text.shape[1])
        valid = np.ones((len(text), self.window), bool)
        if self.objective == 'causal':
            return {'tokens': text[:, :-1].copy(), 'valid': valid, 'label': text[:, 1:].copy()}
        tokens, label = mask_tokens(text, self.vocabulary, seed, numbers, use)
        if self.ends:
            tokens, label = (np.pad(array, ((0, 0), (1, 1)), constant_values=NO_TARGET) for array in (tokens, label))
            tokens[:, [0, -1]] = self.ends
        return {'tokens': tokens, 'segments': np.zeros_like(tokens), 'valid': valid, 'label': label}


def mask_tokens(text: np.ndarray, vocabulary: Tokens, seed: int, numbers: np.ndarray, use: int = MASKING):
    """Hide 15 % of the tokens of each row, at least one, as a network has to guess them.

    A chosen token becomes the mask with probability 0.8 and a random token with probability 0.1; otherwise it stays
    (Devlin et al. 2019, "BERT", section 3.1). Row i is a pure function of (text[i], seed, numbers[i], use), as in
    `draw_bits`. Shapes are text int32[b, T], numbers int64[b] -> (tokens int32[b, T], label int32[b, T]).
    """
    length = text.shape[1]
    count = max(1, round(MASKED_SHARE * length))
    tokens, label = text.copy(), np.full_like(text, NO_TARGET)
    for row, number in enumerate(numbers):
        order, action, other = np.split(draw_bits(seed, number, use, length + 2 * count), [length, length + count])
        places = np.argsort(order, kind='stable')[:count]
        chosen, share = text[row, places], action / 2.0**64
        label[row, places] = chosen
        kept = np.where(share < 0.9, other % vocabulary.vocab_size, chosen)
        tokens[row, places] = np.where(share < 0.8, vocabulary.mask, kept)
    return tokens, label


def open_corpus(
    *,
    name: str = 'corpus',
    path: str | None = None,
    window: int,
    batch_size: int,
    vocab_size: int,
    objective: str = 'causal',
    tokenizer: str = '',
    text_column: str = 'text',
    seed: int = 0,
    on_bad: str = 'stop',
    holdout: float = 0.0,
) -> Corpus:
    """Open a corpus of texts.

    Args:
      name: one of `CORPUS_SOURCES`.
      path: a file, a folder or a glob; empty for `stdlib`.
      window: tokens of an example, T, at least 2; at least 3 with [CLS] and [SEP].
      batch_size: windows in a global batch, at least 1.
      vocab_size: size of the network's vocabulary, above the highest token.
      objective: one of `OBJECTIVES`.
      tokenizer: path of a tokenizer.json or vocab.txt; empty for bytes.
      text_column: name of the text in JSON lines.
      seed: in [0, 2⁶⁴); decides the order and the masked tokens.
      on_bad: one of `ON_BAD`; `skip` leaves a bad file or line, or a domain that is too short, out with a warning.
      holdout: share in [0, 1) of the texts of each domain that is for evaluation, for all seeds; 0 for a twentieth.

    Raises:
      BadInput: an argument is out of range, or the data is wrong.

    >>> open_corpus(name='stdlib', window=64, batch_size=32, vocab_size=256).train_batch(0)['tokens'].shape
    (32, 64)
    """
    check_choice('data name', name, CORPUS_SOURCES)
    check_choice('on_bad', on_bad, ON_BAD)
    check_choice('objective', objective, OBJECTIVES)
    tokens = open_tokens(tokenizer)
    ends = tokens.ends if objective == 'masked' else ()
    if window < (shortest := 3 if ends else 2) or batch_size < 1 or not 0 <= holdout < 1:
        allowed = f'window must be at least {shortest}, batch_size at least 1 and holdout in [0, 1)'
        raise BadInput(f'{allowed}, got {window}, {batch_size} and {holdout}')
    if objective == 'masked' and tokens.mask is None:
        raise BadInput(f'{quote(tokenizer)} must have the token {" or ".join(MASKS)} for objective=masked')
    least = max(tokens.vocab_size, tokens.mask + 1 if objective == 'masked' else 0)
    if vocab_size < least:
        source = quote(tokenizer) if tokenizer else f'bytes with objective={objective}'
        raise BadInput(f'vocab_size must be at least {least} for the tokens of {source}, got {vocab_size}')
    problems = []

    def report(problem: str) -> None:
        if on_bad == 'stop':
            raise BadInput(f"{problem} (on_bad='skip' leaves it out)")
        problems.append(problem)

    train, held, least = {}, {}, window - len(ends) + (objective == 'causal')
    for domain, files in _list_files(name, path).items():
        parts = open_parts(files, tokens, text_column, report)
        streams = tuple(map(Stream, hold_out(parts, holdout or CORPUS_HOLDOUT, least)))
        if min(map(len, streams)) >= least:
            train[domain], held[domain] = streams
        else:
            rule = f'{2 * least} tokens, for a window of {window} to train on and one to evaluate on'
            found = f'got {sum(map(len, streams))}'
            report(f'domain {domain!r} of {quote(path or name)} must have at least {rule}, {found}')
    if not train:
        raise BadInput(f'nothing of {quote(path or name)} is left, the first problem: {problems[0]}')
    if problems:
        logger.warning('left out %d files, lines or domains, the first: %s', len(problems), problems[0])
    return Corpus(train, held, tokens, window, vocab_size, objective, batch_size, seed, ends, tuple(problems))


def hold_out(parts: Sequence[Part], holdout: float, least: int) -> tuple[list[Part], list[Part]]:
    """Split the texts of a domain into those for training and those for evaluation.

    A text is held out if the hash of its name is below `holdout`; hashes lie in [0, 1). So is the text with the lowest
    hash. If these have less than `least` tokens, or more than half of all, they stay in training. Then the last share
    of the longest text is held out.
    """
    hashes = {part.name: _hash_name(part.name) for part in parts}
    names = {name for name in hashes if hashes[name] < holdout} or {min(hashes, key=hashes.get, default='')}
    train, held = [part for part in parts if part.name not in names], [part for part in parts if part.name in names]
    if least <= sum(part.count for part in held) <= sum(part.count for part in train) or not parts:
        return train, held
    longest = max(parts, key=lambda part: part.count)
    count = max(longest.count - max(round(longest.count * holdout), least), 0)
    train = [dataclasses.replace(part, count=count) if part == longest else part for part in parts]
    return train, [dataclasses.replace(longest, start=longest.start + count, count=longest.count - count)]


def _hash_name(name: str) -> float:
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _list_files(name: str, path: str | None) -> dict[str, dict[str, pathlib.Path]]:
    """List the files of a corpus by domain and by name, which is relative to the corpus; sorted by name."""
    is_own = name == 'corpus'
    if is_own != bool(path):
        rule = 'name a file of text or JSON lines, a folder of them or a glob' if is_own else 'be empty'
        raise BadInput(f'path must {rule} for {name}, got {path!r}')
    root = reach(path or sysconfig.get_path('stdlib'))
    if root.is_dir():
        files = []
        for folder, folders, names in walk(root):
            folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
            files += [pathlib.Path(folder, name) for name in names if is_own or name.endswith('.py')]
    elif root.exists():
        root, files = root.parent, [root]
    else:
        files = map(pathlib.Path, glob.glob(str(root), recursive=True))
        while glob.has_magic(str(root)):
            root = root.parent
    domains = {}
    for file in sorted({file.relative_to(root).as_posix() for file in files if file.is_file()}):
        domain = name if not is_own else file.split('/')[0] if '/' in file else 'text'
        domains.setdefault(domain, {})[file] = root / file
    if not domains:
        raise BadInput(f'{quote(path or root)} has no files: path must name a text, a folder of texts or a glob')
    return dict(sorted(domains.items()))
