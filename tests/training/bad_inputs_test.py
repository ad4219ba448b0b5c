"""The table of bad inputs, case by case: status 2, one line on stderr, no traceback, and not a byte changed."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.data.photos import claim_size
from tests.hostile.readers import PARTITION
from tests.training.bad_inputs import CONFIG_FILES, make_cases
from tests.training.fixtures import IN_ROUNDS, contents
from tests.training.tiny import ROOT, small_config
from tests.training.tiny_texts import small_text_config

CASES = make_cases()
pytestmark = pytest.mark.usefixtures('one_block', 'one_layer')


# Worlds: functions of the folder of a test and of that of the texts.
def make_run(folder, config=None):
    """What a run leaves, but for its checkpoints: nothing that is refused here gets to them."""
    root = folder / 'run'
    root.mkdir()
    files = {'data': {'class_names': ['no', 'yes'], 'num_train': 9, 'num_eval': 4}, 'partition': PARTITION}
    files['config'] = (config or small_config(**IN_ROUNDS)).to_dict()
    for name, content in files.items():
        (root / f'{name}.json').write_text(json.dumps(content))
    (root / 'metrics.jsonl').write_text('{"step": 6, "split": "eval", "loss": 1.5, "accuracy": 0.5}\n')
    return root


def change_run(name, change):
    """A world of a run in which one file was changed."""

    def make(folder, texts):
        path = make_run(folder) / name
        path.write_bytes(change(path.read_bytes()))

    return make


def without(name):
    """A world of a run that has lost something."""

    def make(folder, texts):
        (make_run(folder) / name).unlink()

    return make


def set_in_json(*keys, value):
    """A change of a JSON file: the value at these keys, as text."""

    def change(content):
        whole = json.loads(content)
        holder = whole
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = '<value>'
        return json.dumps(whole).replace('"<value>"', value).encode()

    return change


def half(content):
    return content[: len(content) // 2]


def make_text_run(folder, texts):
    make_run(folder, small_text_config(texts))
    rows = {
        'new': 'first,second\nthe cat,sat\n',
        'others': 'text,label\na,b\n',
        'broken': 'first,second\na\n',
        'empty': '',
    }
    for name, text in rows.items():
        (folder / f'{name}.csv').write_text(text)
    (folder / 'new.txt').write_text(rows['new'])
    (folder / 'latin.csv').write_bytes(b'first,second\na caf\xe9,b\n')


def make_photos(change=lambda root: None):
    def make(folder, texts):
        for split, count in (('train', 5), ('val', 2)):
            for name in ('cat', 'dog'):
                (folder / 'photos' / split / name).mkdir(parents=True)
                for number in range(count):
                    pixels = np.random.default_rng(number).integers(0, 255, (9, 9, 3), np.uint8)
                    Image.fromarray(pixels).save(folder / 'photos' / split / name / f'{number}.png')
        change(folder / 'photos')

    return make


def spoil(content):
    def change(root):
        path = root / 'train' / 'dog' / '3.png'
        path.write_bytes(content(path.read_bytes()))

    return make_photos(change)


def put_pipe(root):
    (root / 'train' / 'dog' / '3.png').unlink()
    os.mkfifo(root / 'train' / 'dog' / '3.png')


def remove_dogs(root):
    for split in ('train', 'val'):
        shutil.rmtree(root / split / 'dog')


def empty_dogs(root):
    shutil.rmtree(root / 'train' / 'dog')
    (root / 'train' / 'dog').mkdir()


def make_manual(**files):
    """A world of archives: their contents by name."""

    def make(folder, texts):
        (folder / 'manual').mkdir()
        for name, content in files.items():
            (folder / 'manual' / name.replace('__', '.')).write_bytes(content)

    return make


def tar(name, **fields):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        info = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info)
    return buffer.getvalue()


def tars(train, validation=b'x' * 1024):
    return make_manual(ILSVRC2012_img_train__tar=train, ILSVRC2012_img_val__tar=validation)


def make_zip(*names, size=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name in names:
            archive.writestr(name, 'text')
    content = buffer.getvalue()
    if size:  # as the list at the end claims it: 24 bytes behind the mark of an entry
        parts = content.split(b'PK\x01\x02')
        claimed = [part[:20] + size.to_bytes(4, 'little') + part[24:] for part in parts[1:]]
        content = b'PK\x01\x02'.join([parts[0], *claimed])
    return make_manual(RTE__zip=content)


def make_set(info=None, features='{}', text=None):
    def make(folder, texts):
        place = folder / 'data' / 'x' / '1.0.0'
        place.mkdir(parents=True)
        (place / 'dataset_info.json').write_text(
            json.dumps(info or {'fileFormat': 'tfrecord'}) if text is None else text
        )
        if features is not None:
            (place / 'features.json').write_text(features)

    return make


def make_config_files(folder, texts):
    for number, (text, _) in enumerate(CONFIG_FILES):
        (folder / str(number)).mkdir()
        (folder / str(number) / 'mine.py').write_text(text)


WORLDS = {
    'nothing': lambda folder, texts: None,
    'a run': lambda folder, texts: make_run(folder),
    'a run of texts': make_text_run,
    'a run with half a config.json': change_run('config.json', half),
    'a run with a config.json that nests': change_run('config.json', lambda content: b'[' * 10**5),
    'a run with a seed of 1e999': change_run('config.json', set_in_json('train', 'seed', value='1e999')),
    'a run with an empty data.json': change_run('data.json', lambda content: b'{}'),
    'a run with rows that are not UTF-8': change_run('metrics.jsonl', lambda content: b'\xff' + content),
    'a run without checkpoints': lambda folder, texts: make_run(folder),
    'a run without a partition.json': without('partition.json'),
    'a run with half a partition.json': change_run('partition.json', half),
    'a run with counts beyond any': change_run(
        'partition.json', set_in_json('totals', 'positions', value='1' + '0' * 400)
    ),
    'photos': make_photos(),
    'photos without val': make_photos(lambda root: shutil.rmtree(root / 'val')),
    'photos of cats': make_photos(remove_dogs),
    'photos with an unknown class': make_photos(lambda root: (root / 'val' / 'emu').mkdir()),
    'photos with an empty class': make_photos(empty_dogs),
    'photos with half a photo': spoil(half),
    'photos with a text': spoil(lambda content: b'no image'),
    'photos with a bomb': spoil(lambda content: claim_size(100_000, 100_000)),
    'photos with a pipe': make_photos(put_pipe),
    'an empty folder': make_manual(),
    'a file': lambda folder, texts: (folder / 'manual').write_text(''),
    'tars that are none': tars(b'x' * 1024),
    'tars that lead out': tars(tar('../n01440764.tar')),
    'tars with a link': tars(tar('x', type=tarfile.SYMTYPE, linkname='/etc/passwd')),
    'a set that is there': lambda folder, texts: (folder / 'data' / 'imagenet2012' / '5.1.0').mkdir(parents=True),
    'a zip that is none': make_manual(RTE__zip=b'text'),
    'a zip that leads out': make_zip('../RTE/train.tsv'),
    'a zip of something else': make_zip('CoLA/train.tsv', 'RTE/readme.txt'),
    'a zip that claims to be huge': make_zip('RTE/train.tsv', 'RTE/dev.tsv', size=1_200_000_000),
    'an empty set': lambda folder, texts: (folder / 'data').mkdir(),
    'a set with half a dataset_info.json': make_set(text='{"fileFormat": '),
    'a set in array_record': make_set({'fileFormat': 'array_record'}),
    'a set without features.json': make_set(features=None),
    'a set that leads out': make_set({'splits': [{'name': '../y'}]}),
    'a set that names code': make_set(features='{"pythonClassName": "evil.Feature"}'),
    'config files': make_config_files,
}


@pytest.fixture(scope='module')
def given(texts):
    """What {texts} held before the first case."""
    return contents(texts)


@pytest.mark.parametrize('case', CASES, ids=lambda case: f'{case.command}: {case.says}'[:70])
def test_bad_input(refused, monkeypatch, tmp_path, texts, given, case):
    WORLDS[case.world](tmp_path, texts)
    monkeypatch.chdir(tmp_path)
    places = {'tmp': tmp_path, 'texts': texts}
    flags = [flag.replace('{tmp}', str(tmp_path)).replace('{texts}', str(texts)) for flag in case.flags]
    # `refused` compares all of tmp_path, bytes and times, before and after.
    line = refused(case.command, *flags)
    says = case.says
    for name, path in places.items():
        says = says.replace(f'{{{name}}}', str(path))
    assert says in line
    assert contents(texts) == given


def test_the_table_has_every_command_and_no_case_twice():
    assert len(CASES) >= 170
    assert {case.command for case in CASES} - {'nothing'} == {
        'train',
        'count',
        'evaluate',
        'predict',
        'inspect',
        'demo',
        'prepare',
    }
    assert len({case[:2] + case[3:] + (case.says,) for case in CASES}) == len(CASES)
    assert {case.world for case in CASES} == WORLDS.keys()


PROCESSES = [
    (
        ['train.py', '--config=configs/digits_resnet10_pad.py', '--workdir={tmp}/run', '--config.debug=3'],
        'debug must be',
    ),
    (['-m', 'pad_jax', 'count', '--config=nowhere.py'], 'config file nowhere.py does not exist'),
    (['-m', 'pad_jax', 'evaluate', '--workdir={tmp}/run'], 'run is not the workdir of a run: it holds no config.json'),
    (['-m', 'pad_jax', 'predict', '--workdir={tmp}', '--input=a', '--output=b'], 'is not the workdir of a run'),
    (['-m', 'pad_jax', 'inspect', '--workdir={tmp}/run'], 'run is not the workdir of a run'),
    (['-m', 'pad_jax', 'demo', '--workdir={tmp}/run', '--seeds=0'], '--seeds must be at least 1, got 0'),
    (
        ['-m', 'pad_jax', 'prepare', 'glue', '--task=rte', '--manual-dir={tmp}/a', '--data-dir={tmp}/b'],
        "a' does not exist",
    ),
    (['-m', 'pad_jax', 'nothing'], 'invalid choice'),
]


@pytest.mark.slow
@pytest.mark.parametrize(('command', 'says'), PROCESSES, ids=lambda value: str(value)[:40])
def test_bad_input_of_whole_processes(tmp_path, command, says):
    command = [sys.executable, *(part.replace('{tmp}', str(tmp_path)) for part in command)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (2, ''), done.stderr
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and says in done.stderr
    assert list(tmp_path.iterdir()) == []
