"""Text to wordpieces, as BERT reads them: [CLS] text [SEP], or [CLS] first [SEP] second [SEP].

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers", figure 2.

Legend: N examples, S tokens of all of them in a row, b rows of a batch, T its length.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from pad_jax.data.text_tables import read_text, shorten
from pad_jax.errors import BadInput, quote
from pad_jax.files import list_children, parse_json, read_json

PAD, UNKNOWN, START, END = '[PAD]', '[UNK]', '[CLS]', '[SEP]'
MIN_LENGTH = 8
"""Three of which are [CLS] and two [SEP]."""
PARTS = {
    'normalizer': ('BertNormalizer', 'Lowercase', 'NFC', 'NFD', 'NFKC', 'NFKD', 'Sequence', 'Strip', 'StripAccents'),
    'pre_tokenizer': ('BertPreTokenizer', 'Digits', 'Punctuation', 'Sequence', 'Whitespace', 'WhitespaceSplit'),
}
"""What a tokenizer.json may do to a text before it looks for wordpieces."""
MOST_WORD = 1000
"""Characters of a word that is divided, which takes time by their cube; BERT's is 100."""
SETTINGS = ('do_lower_case', 'strip_accents', 'tokenize_chinese_chars')
"""Of a tokenizer_config.json; null is as if it were not there."""
# Encodings are some hundred bytes a token before they are packed.
CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Encoded texts, packed: example i is `ids[starts[i]:starts[i + 1]]`, int32[S] and int64[N + 1].

    `first_lengths` int32[N] counts an example's tokens in the first segment, its [CLS] and [SEP] included.
    """

    ids: np.ndarray
    starts: np.ndarray
    first_lengths: np.ndarray

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64[N], the tokens of each example."""
        return np.diff(self.starts)

    def take(self, indices: np.ndarray, length: int, pad: int) -> dict[str, np.ndarray]:
        """The examples at int64[b] `indices`, filled up with `pad` to T = `length`, which holds the longest.

        Returns:
            `tokens` int32[b, T]; `segments` int32[b, T], 1 in a second text; `valid` bool[b, T], False where
            it was filled up.
        """
        columns = np.arange(length)
        valid = columns < self.lengths[indices, None]
        tokens = np.full(valid.shape, pad, np.int32)
        tokens[valid] = self.ids[(self.starts[indices, None] + columns)[valid]]
        segments = (valid & (columns >= self.first_lengths[indices, None])).astype(np.int32)
        return {'tokens': tokens, 'segments': segments, 'valid': valid}


class WordPieces:
    """A vocabulary that encodes texts of at most `max_length` tokens.

    Of a pair that is too long the longer text loses its end first, down to the length of the shorter; then
    both do.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int):
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, strategy='longest_first')
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{START} $A {END}',
            pair=f'{START} $A {END} $B:1 {END}:1',
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)],
        )
        # A text that says "[SEP]" is a text about brackets and must not end its segment.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.pad = tokenizer.token_to_id(PAD)
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        """What an embedding must have at least: the highest id + 1."""

    def describe(self) -> dict:
        """What a tokenizer.json has to hold to encode the same way, case and accents included."""
        return json.loads(self._tokenizer.to_str())

    def encode(self, texts: Sequence[Sequence[str]]) -> Tokens:
        """Encodes one or two lists of N texts (a pair's texts at the same place)."""
        ids, lengths, first_lengths = [], [0], []
        for encoding in self._encode_chunks(texts):
            ids.append(np.asarray(encoding.ids, np.int32))
            lengths.append(len(ids[-1]))
            first_lengths.append(lengths[-1] - sum(encoding.type_ids))
        return Tokens(np.concatenate(ids), np.cumsum(lengths), np.asarray(first_lengths, np.int32))

    def _encode_chunks(self, texts: Sequence[Sequence[str]]) -> Iterator[tokenizers.Encoding]:
        rows = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
        for start in range(0, len(rows), CHUNK):
            yield from self._tokenizer.encode_batch_fast(rows[start : start + CHUNK])


def open_vocabulary(path: str | None, max_length: int) -> WordPieces:
    """Opens a vocabulary of wordpieces.

    Args:
        path: a `vocab.txt` (one token a line, the number of its line is its id) or a `tokenizer.json`. What a
            `tokenizer_config.json` beside a `vocab.txt` says of case, accents and Chinese characters holds;
            without one a vocabulary is lower-case unless one of its tokens is not.
        max_length: of a text or pair in tokens, at least `MIN_LENGTH`.

    Raises:
        BadInput: `max_length` is too small, the file cannot be read, or is no such vocabulary.
    """
    if max_length < MIN_LENGTH:
        raise BadInput(f'max_length must be at least {MIN_LENGTH}, got {max_length}')
    if not path:
        raise BadInput(f'vocabulary must name a vocab.txt or tokenizer.json, got {path!r}')
    file = pathlib.Path(path).expanduser()
    if file.suffix not in ('.txt', '.json'):
        raise BadInput(f'vocabulary must name a vocab.txt or tokenizer.json, got {quote(file)}')
    tokenizer = _read_tokenizer(file) if file.suffix == '.json' else _read_vocabulary(file)
    missing = [token for token in (PAD, UNKNOWN, START, END) if tokenizer.token_to_id(token) is None]
    if missing:
        raise BadInput(f'the vocabulary {quote(file)} has no {", ".join(missing)}: it is not one of BERT')
    return WordPieces(tokenizer, max_length)


def _read_tokenizer(file: pathlib.Path) -> Tokenizer:
    text = read_text(file)
    try:
        content = parse_json(text.encode())
        _check_parts(content)
        # Not `text`: of a key that stands there twice the other one might be taken.
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # tokenizers raises nothing narrower.
        raise BadInput(f'{quote(file)} is no tokenizer.json: {" ".join(str(error).split())}') from error
    if not isinstance(tokenizer.model, models.WordPiece):
        raise BadInput(f'{quote(file)} must hold a WordPiece model, got {type(tokenizer.model).__name__}')
    if tokenizer.model.max_input_chars_per_word > MOST_WORD:
        found = tokenizer.model.max_input_chars_per_word
        raise BadInput(f'{quote(file)}: max_input_chars_per_word must be at most {MOST_WORD}, got {found}')
    return tokenizer


def _check_parts(content) -> None:
    """ValueError where a text would go through more than BERT's parts: patterns and replacements can take for ever."""
    for key, known in PARTS.items() if isinstance(content, dict) else ():
        level = [content.get(key)]
        while level:
            kinds = [part['type'] for part in level if isinstance(part, dict) and isinstance(part.get('type'), str)]
            others = [kind for kind in kinds if kind not in known]
            if others:
                raise ValueError(f'{key} must be made of {", ".join(known)}, got {shorten(others[0])!r}')
            level = [below for part in level for below in list_children(part)]


def _read_vocabulary(file: pathlib.Path) -> Tokenizer:
    tokens = [line.removesuffix('\r') for line in read_text(file).split('\n')]
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if ids[token] != number)
        raise BadInput(f'{quote(file)} has the token {twice!r} more than once')
    settings = _read_settings(file.with_name('tokenizer_config.json'))
    cased = any(token != token.lower() for token in tokens if not (token.startswith('[') and token.endswith(']')))
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get('do_lower_case', not cased),
        strip_accents=settings.get('strip_accents'),
        handle_chinese_chars=settings.get('tokenize_chinese_chars', True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _read_settings(file: pathlib.Path) -> dict:
    if not file.is_file():
        return {}
    try:
        settings = read_json(file)
    except OSError as error:
        raise BadInput(f'cannot read {quote(file)}: {error.strerror}') from error
    except ValueError as error:
        raise BadInput(f'{quote(file)} is no JSON object: {error}') from error
    if not isinstance(settings, dict):
        raise BadInput(f'{quote(file)} is no JSON object: it holds another value')
    known = {name: settings[name] for name in SETTINGS if settings.get(name) is not None}
    for name, value in known.items():
        if type(value) is not bool:
            raise BadInput(f'{quote(file)}: {name} must be true or false, got {shorten(repr(value))}')
    return known
