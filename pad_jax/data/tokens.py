"""Tokens of language models: bytes, or those of a tokenizer.json."""

import dataclasses
import json
from typing import Any

from tokenizers import Tokenizer

from pad_jax.data.tables import read_text
from pad_jax.errors import BadInput, quote
from pad_jax.files import reach

MASKS = ('[MASK]', '<mask>')
"""Possible texts of the token that hides another one."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A vocabulary that encodes any text. The defaults are bytes of UTF-8.

    Attributes:
      tokenizer: of the library `tokenizers`; None for bytes.
      vocab_size: the highest token + 1; 256 for bytes.
      mask: token that hides another one; None if there is none.

    >>> BYTES.encode('né'), BYTES.decode([110, 195, 169])
    ([110, 195, 169], 'né')
    """

    tokenizer: Tokenizer | None = None
    vocab_size: int = 256
    mask: int | None = 256

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without any for its beginning or end."""
        if self.tokenizer is None:
            return list(text.encode())
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens. Bytes that are not UTF-8 become U+FFFD; numbers without a token are left out."""
        if self.tokenizer is None:
            return bytes(token for token in tokens if token < 256).decode(errors='replace')
        return self.tokenizer.decode([token for token in tokens if token < self.vocab_size])

    @property
    def run_files(self) -> dict[str, Any]:
        """JSON content by file name that a run directory keeps; {} for bytes."""
        return {} if self.tokenizer is None else {'tokenizer.json': json.loads(self.tokenizer.to_str())}


BYTES = Tokens()


def open_tokens(path: str) -> Tokens:
    """Open a tokenizer.json with any kind of model, or return `BYTES` if the path is empty.

    Raises:
      BadInput: the file cannot be read, or is not a tokenizer.json.
    """
    if not path:
        return BYTES
    file = reach(path)
    text = read_text(file)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing narrower.
        raise BadInput(f'{quote(file)} is not a tokenizer.json: {" ".join(str(error).split())}') from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # the text "[SEP]" is text
    masks = [token for text in MASKS if (token := tokenizer.token_to_id(text)) is not None]
    return Tokens(tokenizer, max(tokenizer.get_vocab().values()) + 1, masks[0] if masks else None)
