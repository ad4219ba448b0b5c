"""Whatever is wrong with texts or their config: status 2, one line on stderr, no traceback, and nothing written."""

import json
import shutil

import pytest

from tests.data.glue_miniatures import write_prepared
from tests.training.tiny import GLUE
from tests.training.tiny_texts import glue, small_text_flags

pytestmark = pytest.mark.usefixtures('one_layer')


@pytest.fixture
def refuse(refused, texts, tmp_path):
    """`refuse(**changes)`: the line that train has to say to a small config with those changes."""

    def run(**changes):
        flags = [f'--config.{flag}' for flag in small_text_flags(texts, **changes)]
        return refused('train', f'--config={GLUE}', f'--workdir={tmp_path}/run', *flags)

    return run


def test_weights_that_do_not_fit(refuse, texts, tmp_path):
    folder = tmp_path / 'weights'
    pretrained = {'model__pretrained': str(folder), 'partition__start_step': 1}
    assert f'{folder} is not a folder of pretrained weights' in refuse(**pretrained)
    shutil.copytree(texts / 'weights', folder)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'hidden_size': 32}))
    line = refuse(**pretrained)
    assert str(folder) in line and 'hidden_size' in line and '32' in line and '16' in line, line
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'model.safetensors').unlink()
    assert f'{folder} holds no weights: model.safetensors' in refuse(**pretrained)


def write_own(folder, name, content):
    """A folder whose train file has that content, and which is right but for that."""
    folder.mkdir()
    (folder / 'val.csv').write_text('text,label\nthe cat,yes\n')
    path = folder / f'train.{name}'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return {'data__path': str(folder), 'data__text_columns': 'text'}


@pytest.mark.parametrize(
    ('name', 'content', 'says'),
    [
        ('tsv', '', "train.tsv' is empty"),
        ('tsv', 'text\tlabel\n', "train.tsv' holds no row below its header"),
        ('csv', b'text,label\nthe cat,yes\na caf\xe9,no\n', "train.csv' line 3 is not UTF-8: byte 0xe9"),
        ('csv', 'text,label\n ,yes\n  ,no\n', "all 2 texts in column 'text' of "),
        ('jsonl', '{"text": "the cat", "label": "yes"}\n{"text": ', 'line 2'),
        ('csv', 'text,label\nthe cat,yes\nthe dog,yes\n', "train.csv' has only the label 'yes'"),
        ('csv', 'text,label\nthe cat,\n', 'line 2: its label is empty'),
        ('csv', 'text,label\nthe cat\n', 'line 2'),
        ('txt', 'text,label\nthe cat,yes\n', 'must hold one train file'),
    ],
)
def test_bad_files(refuse, tmp_path, name, content, says):
    assert says in refuse(**write_own(tmp_path / 'mine', name, content))


def test_texts_that_are_all_empty(refuse, tmp_path):
    content = 'text,label\n' + ' ,yes\n,no\n' * 3
    for on_bad in ('stop', 'skip'):
        folder = tmp_path / on_bad
        line = refuse(**write_own(folder, 'csv', content), data__on_bad=on_bad)
        assert line == f"error: all 6 texts in column 'text' of '{folder}/train.csv' are empty\n"


def test_more_classes_than_the_model_has_are_listed_with_where_they_are(refuse, tmp_path):
    own = write_own(tmp_path / 'mine', 'csv', 'text,label\nthe cat,yes\nthe dog,no\nit ran,yes\nit sat,Yes\n')
    place = f"'{tmp_path}/mine/train.csv' line"
    assert refuse(**own) == (
        f"error: model.num_classes is 2, the data has 3 classes ('Yes' first in {place} 5, 'no' first in {place} 3, "
        f"'yes' first in {place} 2): --config.model.num_classes=3\n"
    )
    (tmp_path / 'mine' / 'train.csv').write_text('text,label\n' + ''.join(f'cat,{i}{"e" * 999}\n' for i in range(30)))
    (tmp_path / 'mine' / 'val.csv').write_text(f'text,label\ncat,0{"e" * 999}\n')
    line = refuse(**own)
    assert f"('29{'e' * 37}…' first in {place} 31, " in line and ', and 25 more): --config.model.num_classes=30' in line
    assert line.count('first in') == 5


def test_a_label_outside_of_the_set_is_named_with_file_and_line(refuse, texts, tmp_path):
    own = write_own(tmp_path / 'mine', 'csv', 'text,label\nthe cat,yes\nthe dog,no\n')
    (tmp_path / 'mine' / 'val.csv').write_text('text,label\nthe cat,yes\nthe dog,maybe\n')
    line = refuse(**own)
    assert "val.csv' line 3: label 'maybe' is not one of no, yes" in line
    shutil.copytree(texts / 'glue', tmp_path / 'glue')
    path = tmp_path / 'glue' / 'RTE' / 'train.tsv'
    path.write_text(path.read_text().replace('not_entailment', 'neutral', 1))
    line = refuse(**glue('rte', data__path=f'{tmp_path}/glue'))
    assert "RTE/train.tsv' line 2: label 'neutral' is not one of entailment, not_entailment" in line


def test_a_set_of_tfds_that_is_not_prepared(refuse, tmp_path):
    """At once, with how to prepare it; another task that is there is not taken for it."""
    (tmp_path / 'tfds').mkdir()
    for prepared in (False, True):
        if prepared:
            write_prepared(tmp_path / 'tfds', 'wnli')
        line = refuse(**glue('rte', data__path=f'{tmp_path}/tfds'))
        assert 'glue/rte (prepared by TFDS)' in line and 'run tfds build glue/rte' in line, line


def test_what_a_run_on_texts_may_change(refused, refuse, finished_text_run, tmp_path):
    workdir = shutil.copytree(finished_text_run, tmp_path / 'run')
    assert 'was made by another config' in refuse(optim__learning_rate=0.5)
    line = refused('evaluate', f'--workdir={workdir}', '--config.data.task=mrpc')
    assert 'only data.path, debug, model.plan, model.remat, parallel, partition.compact, ' in line
    line = refused('evaluate', f'--workdir={workdir}', f'--config.data.path={tmp_path}/nowhere')
    assert "nowhere' does not exist" in line


def test_a_run_whose_tokenizer_is_lost_or_damaged(refused, refuse, finished_text_run, tmp_path):
    workdir = shutil.copytree(finished_text_run, tmp_path / 'run')
    (workdir / 'tokenizer.json').write_text('{"version": ')
    predict = ['predict', f'--workdir={workdir}', f'--input={tmp_path}/new.csv', f'--output={tmp_path}/out.csv']
    (tmp_path / 'new.csv').write_text('first,second\nthe cat,ran\n')
    for command in (['evaluate', f'--workdir={workdir}'], predict):
        assert f"'{workdir}/tokenizer.json' is not a tokenizer.json" in refused(*command)
    (workdir / 'tokenizer.json').unlink()
    for command in (['evaluate', f'--workdir={workdir}'], predict):
        assert f'{workdir} holds no tokenizer.json to say how its texts become tokens' in refused(*command)
