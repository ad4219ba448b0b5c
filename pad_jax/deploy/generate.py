"""Continuation of a text by a trained language model."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from pad_jax.data import open_tokens
from pad_jax.errors import BadInput
from pad_jax.models import generate
from pad_jax.training.config import read_workdir_config
from pad_jax.training.evaluate import restore_run
from pad_jax.training.rounds import to_trained_storage
from pad_jax.training.setup import find_tokens, make_model


def generate_text(
    workdir: Path, prompt: str, num_tokens: int, temperature: float = 0.0, seed: int = 0, best: bool = False
) -> Iterator[str]:
    """Continue a text, piece by piece.

    A model sees at most model.max_length tokens. When they are full, it starts again from the last half of them.

    Args:
      workdir: folder of a run with train.objective=causal.
      prompt: text with at least one token.
      num_tokens: tokens to add, at least 1.
      temperature: 0 takes the most likely token; otherwise logits are divided by it, and tokens are drawn.
      seed: of the draws, in [0, 2³²).
      best: as in `restore_run`.

    Raises:
      BadInput: workdir holds no such run or no checkpoint, or an argument is out of range.
    """
    config = read_workdir_config(workdir)
    if config.train.get('objective') != 'causal':
        raise BadInput(f'{workdir} holds no model that continues texts: generate needs train.objective=causal')
    if not 0 <= temperature < np.inf:
        raise BadInput(f'--temperature must be at least 0, got {temperature}')
    if not 0 <= seed < 2**32:
        raise BadInput(f'--seed must be an integer from 0 to {2**32 - 1}, got {seed}')
    tokens, longest = open_tokens(find_tokens(config, workdir)), config.model.max_length
    ids = np.asarray(tokens.encode(prompt), np.int32)
    if not ids.size:
        raise BadInput('--prompt must hold at least one token, got an empty text')
    state = restore_run(workdir, best=best).state
    state = to_trained_storage(state, config.partition.rounds, config.partition.compact)
    return _continue(make_model(config), state.averaged_variables, tokens, ids, longest, num_tokens, temperature, seed)


def _continue(model, variables, tokens, ids, longest, num_tokens, temperature, seed) -> Iterator[str]:
    """Yield the text of each chunk of new tokens."""
    key, new, said = jax.random.key(seed), np.zeros(0, np.int32), 0
    while len(new) < num_tokens:
        seen = np.concatenate([ids, new])
        seen = seen[-longest // 2 :] if len(seen) >= longest else seen
        count = min(num_tokens - len(new), longest - len(seen))
        chunk_key = jax.random.fold_in(key, len(new))
        found = generate(model, variables, seen[None], count, temperature, chunk_key)
        new = np.concatenate([new, np.asarray(found)[0]])
        text = tokens.decode(new.tolist())
        if len(new) < num_tokens:
            text = text.rstrip('\ufffd')  # a character that the next tokens may complete
        yield text[said:]
        said = len(text)
