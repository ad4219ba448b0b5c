"""The smallest language models: a decoder of one layer and a masked encoder, on a corpus of two domains."""

import json

from pad_jax.data import open_vocabulary
from pad_jax.training.config import load_config
from tests.training.tiny import ROOT

CAUSAL, MASKED = ROOT / 'configs' / 'lm_pad.py', ROOT / 'configs' / 'mlm_bert_tiny_pad.py'

# The same in as many tests as possible: equal steps compile once in a process.
SMALL_LANGUAGE = {
    'model.num_experts': 4,
    'model.plan': 'dense',
    'partition.batches': 1,
    'partition.batch_size': 4,
    'data.name': 'corpus',
    'data.path': '{corpus}',
    'data.holdout': 0.3,
    'data.batch_size': 8,
    'data.max_length': 16,
    'optim.learning_rate': 1e-2,
    'optim.warmup_steps': 1,
    'train.steps': 6,
    'train.log_every_steps': 1,
    'train.eval_every_steps': 3,
    'train.checkpoint_every_steps': 2,
}
SMALL_CAUSAL = SMALL_LANGUAGE | {
    'model.num_layers': 1,
    'model.width': 16,
    'model.num_heads': 2,
    'model.ffn_width': 8,
    'model.max_length': 24,
}
SMALL_MASKED = SMALL_LANGUAGE | {
    'model.vocab_size': 32,
    'model.max_length': 16,
    'data.vocabulary': '{tokenizer}',
    'partition.start_step': 2,
}


def write_corpus(root):
    """Write a folder of two domains, six files each: sentences about animals, and sums."""
    for domain, line in (('animals', 'the {} cats sat on a mat .\n'), ('sums', '{0} + {0} is {0} * 2\n')):
        (root / domain).mkdir(parents=True)
        for number in range(6):
            lines = [line.format(number * 7 + other) for other in range(12)]
            (root / domain / f'{number}.txt').write_text(''.join(lines))
    return root


def write_places(root, texts):
    """Write that corpus and a tokenizer.json with the vocabulary of `texts`; return their paths by name."""
    pieces = open_vocabulary(str(texts / 'vocab.txt'), max_length=16)
    (root / 'tokenizer.json').write_text(json.dumps(pieces.describe()))
    return {'corpus': write_corpus(root / 'corpus'), 'tokenizer': root / 'tokenizer.json'}


def small_language_flags(places, small=SMALL_CAUSAL, **changes):
    """Overrides 'section.key=value' of a language model; `section__key=value` changes more, `places` fills in paths."""
    changes = small | {name.replace('__', '.'): value for name, value in changes.items()}
    return [f'{name}={str(value).format(**places)}' for name, value in changes.items()]


def small_language_config(places, small=SMALL_CAUSAL, **changes):
    """The config of those overrides."""
    path = CAUSAL if small is SMALL_CAUSAL else MASKED
    return load_config(str(path), small_language_flags(places, small, **changes))
