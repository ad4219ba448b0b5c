import re

import pytest

from pad_jax.data.text_sources import TEXT_SOURCES, make_text_source
from pad_jax.data.tokenization import open_vocabulary
from pad_jax.errors import BadInput
from tests.data import glue_miniatures as miniatures


def make(name, tmp_path, **changes):
    pieces = open_vocabulary(miniatures.write_vocabulary(tmp_path), 16)
    settings = {'path': str(tmp_path), 'pieces': pieces, 'batch_size': 2, 'task': 'rte'}
    own = {'text_columns': ('sentence1', 'sentence2'), 'label_column': 'label'}
    return make_text_source(name, **(settings | own | changes))


def test_opens_either_and_passes_its_arguments_on(tmp_path):
    folder = miniatures.write_original(tmp_path, 'rte')
    glue = make('glue', tmp_path, seed=3)
    (folder / 'dev.tsv').rename(folder / 'val.tsv')
    own = make('text', tmp_path, path=str(folder), seed=3)
    for source in (glue, own):
        assert (source.batch_size, source.seed, source.spec.max_length) == (2, 3, 16)
        assert source.spec.class_names == ('entailment', 'not_entailment')
        assert (source.train_batch(2)['tokens'] == glue.train_batch(2)['tokens']).all()
    with pytest.raises(BadInput, match="label 'not_entailment' is not a number"):
        make('text', tmp_path, path=str(folder), regression=True)
    with (folder / 'train.tsv').open('a') as file:
        file.write('broken\n')
    assert make('text', tmp_path, path=str(folder), on_bad='skip').spec == own.spec


@pytest.mark.parametrize('name', TEXT_SOURCES)
@pytest.mark.parametrize(
    'wrong, message',
    [
        ({'batch_size': 0}, 'batch_size must be at least 1, got 0'),
        ({'seed': -1}, 'seed must be in [0, 2**64), got -1'),
        ({'on_bad': 'ignore'}, "on_bad must be one of stop, skip, got 'ignore'"),
    ],
)
def test_every_source_checks_every_argument(tmp_path, name, wrong, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        make(name, tmp_path, **wrong)


def test_refuses_an_unknown_source(tmp_path):
    with pytest.raises(BadInput, match="data name must be one of glue, text, got 'squad'"):
        make('squad', tmp_path)
