"""Tokens of texts: wordpieces as BERT reads them, and tokens of language models.

BERT reads [CLS] text [SEP], or [CLS] first [SEP] second [SEP]. Devlin et al. 2019, "BERT: Pre-training of Deep
Bidirectional Transformers", figure 2.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pad_jax.data.source import Batch
from pad_jax.data.tables import read_text
from pad_jax.errors import BadInput, quote
from pad_jax.files import reach, read_own_object

PAD, UNKNOWN, START, END = '[PAD]', '[UNK]', '[CLS]', '[SEP]'
MASKS = ('[MASK]', '<mask>')
"""Possible texts of the token that hides another one."""
MIN_LENGTH = 8
"""Up to three of these tokens are [CLS] and [SEP]."""
# An encoding takes hundreds of bytes a token before it is packed.
CHUNK = 4096
SHORTEST = 16


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
    """One split as tokens."""

    ids: np.ndarray  # tokens of all examples in one array, int32; example i is ids[starts[i]:starts[i + 1]]
    starts: np.ndarray  # int64[N + 1]
    first_lengths: np.ndarray  # tokens of an example's first segment, with its [CLS] and [SEP], int32[N]
    labels: np.ndarray | None  # int32[N], or float32[N] for regression
    pad: int  # token that fills a batch
    max_length: int  # most tokens of an example

    def __len__(self) -> int:
        return len(self.first_lengths)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, int64[N]."""
        return np.diff(self.starts)

    def take(self, indices: np.ndarray, rows: slice | None = None) -> Batch:
        """Make the batch of the examples at int64[B] `indices`, or the `rows` of it.

        T is the bucket of the longest example of the whole batch. So all processes that share a batch pad it alike.

        Returns:
          `tokens` int32[B, T]; `segments` int32[B, T], 1 in a second text; `valid` bool[B, T], False for padding;
          `label`, if there are labels.
        """
        columns = np.arange(choose_length(int(self.lengths[indices].max()), self.max_length))
        indices = indices[rows or slice(None)]
        valid = columns < self.lengths[indices, None]
        tokens = np.full(valid.shape, self.pad, np.int32)
        tokens[valid] = self.ids[(self.starts[indices, None] + columns)[valid]]
        segments = (valid & (columns >= self.first_lengths[indices, None])).astype(np.int32)
        batch = {'tokens': tokens, 'segments': segments, 'valid': valid}
        return batch if self.labels is None else {**batch, 'label': self.labels[indices]}

    def iterate(self, batch_size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Iterate once over all examples, in order, in batches of exactly `batch_size`.

        A batch also has `weight` float32[B]: 1 for an example, 0 for the rows that fill the last batch. Those rows
        have no valid token and label 0. The exact mean of a value is Σ weight · value / Σ weight.
        """
        for start in range(0, len(self), batch_size):
            indices = start + np.arange(batch_size)
            batch = self.take(np.minimum(indices, len(self) - 1), rows)
            weight = (indices < len(self))[rows or slice(None)]
            blank = {'tokens': self.pad, 'segments': 0, 'valid': False, 'label': 0}
            for key, values in batch.items():
                values[~weight] = blank[key]
            yield {**batch, 'weight': weight.astype(np.float32)}


def choose_length(longest: int, max_length: int) -> int:
    """Choose the padded length of a batch. There are few lengths, so that few are compiled.

    >>> [choose_length(longest, 100) for longest in (5, 16, 17, 64, 65)]
    [16, 16, 32, 64, 100]
    """
    return min(max(SHORTEST, 1 << (int(longest) - 1).bit_length()), max_length)


class WordPieces:
    """A vocabulary that encodes texts with at most `max_length` tokens.

    If a pair is too long, the longer text loses its end first, down to the length of the shorter. Then both do.
    `vocab_size` is the highest token + 1, the smallest size of an embedding.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int):
        tokenizer.enable_truncation(max_length, strategy='longest_first')
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{START} $A {END}',
            pair=f'{START} $A {END} $B:1 {END}:1',
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)],
        )
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.pad = tokenizer.token_to_id(PAD)
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1

    def describe(self) -> dict:
        """Return the content of a tokenizer.json that encodes the same way."""
        return json.loads(self._tokenizer.to_str())

    def encode(self, texts: Sequence[Sequence[str]], labels: np.ndarray | None = None) -> EncodedTexts:
        """Encode one or two lists of N texts. The texts of a pair have the same index."""
        rows = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
        ids, lengths, first_lengths = [], [0], []
        for start in range(0, len(rows), CHUNK):
            for encoding in self._tokenizer.encode_batch_fast(rows[start : start + CHUNK]):
                ids.append(np.asarray(encoding.ids, np.int32))
                lengths.append(len(ids[-1]))
                first_lengths.append(lengths[-1] - sum(encoding.type_ids))
        first_lengths = np.asarray(first_lengths, np.int32)
        return EncodedTexts(np.concatenate(ids), np.cumsum(lengths), first_lengths, labels, self.pad, self.max_length)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A vocabulary that encodes any text, for language models. The defaults are the bytes of its UTF-8.

    Attributes:
      tokenizer: of the library `tokenizers`; None for bytes.
      vocab_size: the highest token of a text + 1; 256 for bytes.
      mask: token that hides another one; None if the tokenizer lacks it. For bytes 256, which no text contains.
      ends: [CLS] and [SEP]; () for bytes or if the tokenizer lacks one of them.
      path: of the tokenizer, for messages.

    >>> Tokens().encode('né', '!').tolist(), Tokens().decode([110, 195, 169])
    ([110, 195, 169, 33], 'né')
    """

    tokenizer: Tokenizer | None = None
    vocab_size: int = 256
    mask: int | None = 256
    ends: tuple[int, ...] = ()
    path: str = ''

    def encode(self, *texts: str) -> np.ndarray:
        """Return the tokens of one or more texts, one text after another and nothing between them, int32[N]."""
        if self.tokenizer is None:
            return np.frombuffer(''.join(texts).encode(), np.uint8).astype(np.int32)
        try:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # tokenizers raises nothing narrower.
            raise BadInput(f'{quote(self.path)} cannot encode a text: {" ".join(str(error).split())}') from error
        return np.concatenate([np.asarray(encoding.ids, np.int32) for encoding in encodings])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens. Broken UTF-8 becomes U+FFFD; tokens outside of the vocabulary are left out."""
        tokens = [int(token) for token in tokens if token < self.vocab_size]
        return bytes(tokens).decode(errors='replace') if self.tokenizer is None else self.tokenizer.decode(tokens)

    @property
    def run_files(self) -> dict[str, Any]:
        """JSON content by file name that a run directory keeps; {} for bytes."""
        return {} if self.tokenizer is None else {'tokenizer.json': json.loads(self.tokenizer.to_str())}


def open_tokens(path: str) -> Tokens:
    """Open a tokenizer.json with any kind of model or a vocab.txt, or return bytes if the path is empty.

    Raises:
      BadInput: the file cannot be read, or is neither.
    """
    if not path:
        return Tokens()
    tokenizer, ids = _open_tokenizer(path)
    mask, ends = next((ids[text] for text in MASKS if text in ids), None), (START, END)
    ends = tuple(ids[text] for text in ends) if ids.keys() >= set(ends) else ()
    return Tokens(tokenizer, max(ids.values()) + 1, mask, ends, path)


def open_vocabulary(path: str | None, max_length: int) -> WordPieces:
    """Open a vocabulary of wordpieces.

    Args:
      path: a `vocab.txt` (one token a line; the line's number is its id) or a `tokenizer.json`. Beside a `vocab.txt` a
        `tokenizer_config.json` may set case, accents and Chinese characters. Without it a vocabulary is lower-case if
        all of its tokens are.
      max_length: tokens of a text or pair, at least `MIN_LENGTH`.

    Raises:
      BadInput: if `max_length` is too small, the file cannot be read, or it is not such a vocabulary.
    """
    if max_length < MIN_LENGTH:
        raise BadInput(f'max_length must be at least {MIN_LENGTH}, got {max_length}')
    tokenizer, ids = _open_tokenizer(path or '')
    if not isinstance(tokenizer.model, models.WordPiece):
        raise BadInput(f'{quote(path)} must hold a WordPiece model, got {type(tokenizer.model).__name__}')
    missing = [token for token in (PAD, UNKNOWN, START, END) if token not in ids]
    if missing:
        raise BadInput(f'the vocabulary {quote(path)} has no {", ".join(missing)}: it is not a vocabulary of BERT')
    return WordPieces(tokenizer, max_length)


def _open_tokenizer(path: str) -> tuple[Tokenizer, dict[str, int]]:
    """Open a vocab.txt or tokenizer.json to encode whole texts; also return its tokens by text."""
    file = reach(path)
    if file.suffix not in ('.txt', '.json'):
        raise BadInput(f'vocabulary must name a vocab.txt or tokenizer.json, got {quote(path)}')
    try:
        tokenizer = _read_vocabulary(file) if file.suffix == '.txt' else Tokenizer.from_str(read_text(file))
    except BadInput:
        raise
    except Exception as error:  # tokenizers raises nothing narrower.
        raise BadInput(f'{quote(file)} is not a tokenizer.json: {" ".join(str(error).split())}') from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # a text that contains "[SEP]" must not end its segment
    return tokenizer, tokenizer.get_vocab()


def _read_vocabulary(file: pathlib.Path) -> Tokenizer:
    tokens = [line.removesuffix('\r') for line in read_text(file).split('\n')]
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if ids[token] != number)
        raise BadInput(f'{quote(file)} has the token {twice!r} more than once')
    config = file.with_name('tokenizer_config.json')
    settings = read_own_object(config, 'a folder with a vocabulary') if config.is_file() else {}
    settings = {name: value for name, value in settings.items() if value is not None}  # null counts as missing
    cased = any(token != token.lower() for token in tokens if not (token.startswith('[') and token.endswith(']')))
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=100))
    try:
        tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=settings.get('do_lower_case', not cased),
            strip_accents=settings.get('strip_accents'),
            handle_chinese_chars=settings.get('tokenize_chinese_chars', True),
        )
    except TypeError as error:
        keys = 'do_lower_case, strip_accents and tokenize_chinese_chars'
        raise BadInput(f'{quote(config)}: {keys} must be true or false: {error}') from error
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tokenizer
