import contextlib
import io
import shutil
import types
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tensorflow_datasets.text.glue as tfds_glue

from pad_jax.data import glue_tfds
from pad_jax.data.glue import GLUE_TASKS, find_task
from pad_jax.data.preparation import glue as module
from pad_jax.data.preparation import prepare_glue
from pad_jax.errors import BadInput
from tests.data import glue_miniatures as miniatures

ARCHIVES = {task: f'{miniatures.FOLDERS[task]}.zip' for task in miniatures.TASKS} | {'qnli': 'QNLIv2.zip'}
DIAGNOSTIC = 'index\tsentence1\tsentence2\n0\tit ran\ta cat\n1\tthe cat sat\tit sat\n'


def write_zip(root, task, leave_out=()):
    """The archive of a task, with the folder as it is distributed and a file that is not wanted."""
    folder = miniatures.write_original(root, task)
    if task == 'mnli':
        shutil.copyfile(folder / 'test_matched.tsv', folder / 'test_mismatched.tsv')
    with zipfile.ZipFile(root / ARCHIVES[task], 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f'{folder.name}/original/notes.txt', 'not wanted')
        for path in sorted(folder.iterdir()):
            if path.name not in leave_out:
                archive.write(path, f'{folder.name}/{path.name}')
    shutil.rmtree(folder)
    return root / ARCHIVES[task]


def write_mrpc(root):
    """MRPC as its authors distribute it, and the list of the rows to evaluate on: the 2nd and the 4th."""
    header = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n'
    lines = [f'{label}\t{n}\t{n + 100}\t{first}\t{second}' for n, (first, second, label) in enumerate(miniatures.PAIRS)]
    for name, rows in (('train', lines), ('test', lines[:2])):
        (root / f'msr_paraphrase_{name}.txt').write_text(header + '\n'.join(rows) + '\n', encoding='utf-8')
    (root / 'data_mrpc_dev_ids.tsv').write_text('1\t101\n3\t103\n')


def expect(task, split):
    """[texts], [label] as the reader of prepared sets returns them."""
    rows = list(miniatures.rows(task, split))
    return [texts for texts, _ in rows], [label for _, label in rows]


@pytest.mark.parametrize('kind', ['archive', 'folder'])
@pytest.mark.parametrize('name', [name for name in miniatures.TASKS if name != 'mrpc'])
def test_every_task_reads_back_as_its_source(tmp_path, name, kind):
    (tmp_path / 'manual').mkdir()
    (write_zip if kind == 'archive' else miniatures.write_original)(tmp_path / 'manual', name)
    folder = prepare_glue(name, tmp_path / 'manual', tmp_path / 'data')
    assert folder == glue_tfds.find_prepared(tmp_path / 'data', name)
    task = find_task(name)
    for split in miniatures.splits(name):
        examples = glue_tfds.read_split(folder, task, split.replace('dev', 'validation'))
        texts, labels = expect(name, split)
        assert list(zip(*examples.texts)) == texts
        if split.startswith('test'):
            assert examples.labels is None
        else:
            np.testing.assert_array_equal(examples.labels, np.array(labels, examples.labels.dtype))
    by_name = tfds.data_source(f'glue/{name}', data_dir=tmp_path / 'data', download=False)
    assert set(by_name) == set(tfds.builder_from_directory(folder).info.splits)
    # Nothing of what was unpacked stays.
    assert {path.suffix for path in folder.iterdir()} <= {'.json', '.txt', '.array_record-00000-of-00001'}


@pytest.mark.parametrize('name', ['rte', 'stsb', 'mrpc', 'mnli_matched'])
def test_every_file_is_the_one_that_tfds_writes_itself(tmp_path, name):
    """Its builder and its writer, which do without TensorFlow as long as the set is small; its unpacking does not."""
    manual, unpacked = tmp_path / 'manual', tmp_path / 'unpacked'
    manual.mkdir()
    if name == 'mrpc':
        write_mrpc(manual)
    else:
        shutil.unpack_archive(write_zip(manual, name.removesuffix('_matched')), unpacked)
    mrpc = {'train': 'msr_paraphrase_train.txt', 'test': 'msr_paraphrase_test.txt', 'dev_ids': 'data_mrpc_dev_ids.tsv'}
    files = types.SimpleNamespace(
        download=lambda urls: {role: manual / mrpc[role] for role in urls},
        download_and_extract=lambda url: unpacked,
    )
    with tfds.core.registered.skip_registration():

        class Glue(tfds_glue.Glue):
            __module__ = tfds_glue.__name__

            def _split_generators(self, dl_manager):
                return super()._split_generators(files)

    builder = Glue(config=name, data_dir=str(tmp_path / 'theirs'), file_format='array_record')
    with contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()
    folder = prepare_glue(name, manual, tmp_path / 'ours')
    names = sorted(path.name for path in builder.data_path.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (builder.data_path / name).read_bytes(), name


def test_mrpc_from_the_folder_of_glue_keeps_its_division(tmp_path):
    (tmp_path / 'manual').mkdir()
    miniatures.write_original(tmp_path / 'manual', 'mrpc')
    folder = prepare_glue('mrpc', tmp_path / 'manual', tmp_path / 'data')
    for split in ('train', 'validation', 'test'):
        examples = glue_tfds.read_split(folder, GLUE_TASKS['mrpc'], split)
        texts, labels = expect('mrpc', split.replace('validation', 'dev'))
        assert list(zip(*examples.texts)) == texts
        assert examples.labels is None if split == 'test' else examples.labels.tolist() == labels


def test_the_diagnostic_set_has_a_test_split_only(tmp_path):
    (tmp_path / 'AX.tsv').write_text(DIAGNOSTIC)
    prepare_glue('ax', tmp_path, tmp_path / 'data')
    rows = tfds.data_source('glue/ax', data_dir=tmp_path / 'data', download=False)
    assert set(rows) == {'test'}
    assert {(row['premise'], row['hypothesis'], int(row['label'])) for row in rows['test']} == {
        (b'it ran', b'a cat', -1),
        (b'the cat sat', b'it sat', -1),
    }


def refuse(manual, data_dir, message, task='rte', **changes):
    """Preparing raises with that message, and leaves nothing."""
    with pytest.raises(BadInput, match=message) as caught:
        prepare_glue(task, manual, data_dir / 'deep' / 'data', **changes)
    assert '\n' not in str(caught.value)
    assert not (data_dir / 'deep').exists()


def test_an_unknown_task_is_refused_with_those_there_are(tmp_path):
    known = ', '.join(tfds_glue.Glue.builder_configs)
    assert set(GLUE_TASKS) | {'ax', 'mnli_matched', 'mnli_mismatched'} == set(known.split(', '))
    refuse(tmp_path, tmp_path, f"--task must be one of {known}, got 'rtx'", task='rtx')


def test_missing_files_are_named_with_where_to_get_them(tmp_path):
    refuse(tmp_path, tmp_path, r"' has neither RTE.zip nor RTE/: download https://.*/RTE.zip and put it there")
    refuse(tmp_path, tmp_path, r'no AX.tsv \(from https://.*\): put', task='ax')
    refuse(
        tmp_path, tmp_path, r'no data_mrpc_dev_ids.tsv \(from .*no msr_paraphrase_test.txt .*, nor MRPC/', task='mrpc'
    )
    refuse(tmp_path / 'none', tmp_path, r"--manual-dir '.*none' does not exist")


@pytest.mark.parametrize('kind', ['archive', 'folder'])
def test_a_missing_split_is_refused_but_for_the_test_split(tmp_path, kind):
    manual = tmp_path / 'manual'
    manual.mkdir()

    def write(*leave_out):
        if kind == 'archive':
            return write_zip(manual, 'rte', leave_out)
        folder = miniatures.write_original(manual, 'rte')
        for name in leave_out:
            (folder / name).unlink()
        return folder

    path = write('dev.tsv')
    refuse(manual, tmp_path, r"RTE' has no dev.tsv")
    path.unlink() if path.is_file() else shutil.rmtree(path)
    write('test.tsv')
    folder = prepare_glue('rte', manual, tmp_path / 'data')
    assert set(tfds.builder_from_directory(folder).info.splits) == {'train', 'validation'}


def test_a_damaged_archive_is_refused_with_its_name(tmp_path):
    path = write_zip(tmp_path, 'rte')
    content = path.read_bytes()
    for spoilt in (b'', content[:-100], content[:100], b'<html>'):
        path.write_bytes(spoilt)
        refuse(tmp_path, tmp_path, r"RTE.zip' is no zip, damaged or cut short: ")
    start = content.index(b'RTE/train.tsv') + 20
    path.write_bytes(content[:start] + bytes(10) + content[start + 10 :])
    refuse(tmp_path, tmp_path, r"RTE.zip' is no zip, damaged or cut short: ")
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('WNLI/train.tsv', 'index')
    refuse(tmp_path, tmp_path, r"RTE.zip' has no RTE/\*.tsv")


@pytest.mark.parametrize('name', ['../train.tsv', '/etc/train.tsv', 'RTE/../../train.tsv'])
def test_names_that_lead_out_of_their_folder_are_refused(tmp_path, name):
    path = write_zip(tmp_path, 'rte')
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(name, 'index')
    refuse(tmp_path, tmp_path, r"RTE.zip' holds '.*', which leads out of its folder")
    assert not list(tmp_path.glob('*.tsv'))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tb\tmaybe\n', "after row 0: .*'maybe'"),
        ('index\tsentence1\tsentence2\tlabel\n0\ta\tb\t7\n', 'read: '),
        (
            'index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tb',
            '1 rows with too few columns, beside 1 whole',
        ),
        ('index\tquestion\tsentence2\tlabel\n0\ta\tb\tentailment\n', "read: 'sentence1'"),
        ('index\tsentence1\tsentence2\n0\ta\tb\n', "no labels in a column 'label'"),
        ('index\tsentence1\tsentence2\tlabel\n', "no labels in a column 'label'"),
        ('', "no labels in a column 'label'"),
        (b'index\tsentence1\tsentence2\tlabel\n0\t\xff\tb\tentailment\n', 'read: .*utf-8'),
    ],
)
def test_a_wrong_table_is_refused_with_its_name(tmp_path, content, message):
    folder = miniatures.write_original(tmp_path, 'rte')
    (folder / 'train.tsv').write_bytes(content if isinstance(content, bytes) else content.encode())
    refuse(tmp_path, tmp_path, rf"RTE/train.tsv' (cannot be|has) .*{message}")


def test_of_qqp_broken_rows_are_left_out_and_told(tmp_path, caplog):
    path = miniatures.write_original(tmp_path, 'qqp') / 'train.tsv'
    path.write_text(path.read_text() + '105\t1\t2\tthe half of a row\n')
    folder = prepare_glue('qqp', tmp_path, tmp_path / 'data')
    assert len(glue_tfds.read_split(folder, find_task('qqp'), 'train').ids) == 5
    assert caplog.messages == [f"'{path}': left out 1 rows with too few columns, as TFDS does"]


def test_a_set_that_is_there_is_replaced_only_on_request(tmp_path):
    miniatures.write_original(tmp_path, 'rte')
    folder = prepare_glue('rte', tmp_path, tmp_path / 'data')
    with pytest.raises(BadInput, match=r"glue/rte/2.0.0' is there already: --overwrite"):
        prepare_glue('rte', tmp_path, tmp_path / 'data')
    rows = (tmp_path / 'RTE/train.tsv').read_text().splitlines(keepends=True)
    (tmp_path / 'RTE/train.tsv').write_text(''.join(rows[:-1]))
    prepare_glue('rte', tmp_path, tmp_path / 'data', overwrite=True)
    assert len(glue_tfds.read_split(folder, find_task('rte'), 'train').ids) == 4


def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    write_zip(tmp_path, 'rte')
    with monkeypatch.context() as patch:
        patch.setattr(module, 'write_info', interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_glue('rte', tmp_path, tmp_path / 'data')
    assert not (tmp_path / 'data').exists()
    prepare_glue('rte', tmp_path, tmp_path / 'data')
