"""Damaged and malicious files: every reader reads them or refuses them in one line that names the file.

Nothing else may happen: no other exception, no hang, no crash, no memory without end, no code of a file that runs. The
slow tests try many random changes, as many as FUZZ_EXAMPLES.
"""

import contextlib
import importlib
import io
import json
import os
import pickle
import re
import resource
import signal
import struct
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import pad_jax
from pad_jax.data import make_source
from pad_jax.errors import BadInput
from tests.data import photos
from tests.hostile.readers import (
    READERS,
    SETTINGS,
    tokenizer_json,
)

SECONDS, GIGABYTES = 20, 4  # far beyond the needs of such small files
EXAMPLES = int(os.environ.get('FUZZ_EXAMPLES', 300))


class TooSlow(BaseException):
    """A reader that has not returned. Not an Exception, which readers may catch."""


@contextlib.contextmanager
def limits():
    """Limit the time and the additional memory of a block."""

    def stop(number, frame):
        raise TooSlow

    pages = int(Path('/proc/self/statm').read_text().split()[0])
    former_memory = resource.getrlimit(resource.RLIMIT_AS)
    former_handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIGABYTES * 2**30, former_memory[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former_handler)
        resource.setrlimit(resource.RLIMIT_AS, former_memory)


def try_reader(reader, content=None, make=None):
    """Return the message of a reader about a content, or about a file that `make` creates; '' if it reads it."""
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        place = Path(folder) / 'inside'
        place.mkdir()
        reader.prepare(place)
        (place / reader.name).unlink(missing_ok=True)
        (place / reader.name).write_bytes(content) if make is None else make(place / reader.name)
        with limits():
            try:
                reader.read(place)
                message = ''
            except BadInput as error:
                message = str(error)
        assert [path.name for path in Path(folder).iterdir()] == ['inside']
    assert '\n' not in message and (not message or 'inside' in message), message
    return message


def read_with(name, content):
    """Return the messages of all readers of files with that name."""
    found = {try_reader(reader, content) for reader in READERS if reader.name == name}
    assert found
    return ' | '.join(sorted(found))


# Random changes.
# Ends of text, numbers beyond every type, nesting, names that lead out, byte order marks.
TOKENS = (b'', b'\0', b'\n', b'\r', b'\t', b'"', b',', b'{', b'[]', b'[' * 3000, b'{"a":' * 3000, b'\xff' * 8)
TOKENS += (b'\x7f' + b'\xff' * 7, b'\xef\xbb\xbf', b'\xed\xa0\x80', b'\\ud800', b'../../x', b'-1', b'1e999', b'NaN')
TOKENS += (b'9' * 30, b'9' * 5000, b'null', b'true', b'"a"', b'$', b'[/x]')


@st.composite
def mutations(draw, content: bytes) -> bytes:
    """Change a content in a few places, so that most of it stays readable."""
    for _ in range(draw(st.integers(1, 4))):
        start, where = draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.sampled_from((0, 1, 2, 4, 8, 16, 64, 512))))
        token = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
        middle = draw(st.sampled_from((token, token + content[start:stop], b'', content[start:stop] * 300)))
        moved = content[:where] + content[start:stop] + content[where:]
        content = draw(st.sampled_from((content[:start], content[:start] + middle + content[stop:], moved)))
    return content


def fuzz(reader, count):
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.sampled_from(reader.seeds()).flatmap(mutations))
    def try_content(content):
        try_reader(reader, content)

    try_content()


class Mark:
    """Pickled, it touches a file at the place where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def pickles(tmp_path):
    """A pickle and an array of NumPy that leave a mark."""
    marked, array = tmp_path / 'marked', tmp_path / 'array.npy'
    np.save(array, np.array([Mark(marked)], object), allow_pickle=True)
    yield pickle.dumps(Mark(marked)), array.read_bytes()
    assert not marked.exists()


DEEP = (b'[' * 100_000, b'{"a":' * 100_000, b'{"step":' * 5000 + b'1' + b'}' * 5000)


def names(reader):
    return f'{reader.name}-{getattr(reader.read, "__name__", "read")}'


@pytest.mark.parametrize('reader', READERS, ids=names)
def test_good_files_are_read_and_others_refused_in_one_line(reader, pickles):
    for content in reader.seeds():
        assert try_reader(reader, content) == ''
    is_json = reader.name.endswith(('.json', '.jsonl'))
    for content in (*pickles, b'\xff\xfe', b'', *DEEP):
        message = try_reader(reader, content)
        assert message or not is_json or reader.name == 'metrics.jsonl'  # whose last line may be incomplete
    fuzz(reader, 5)


@pytest.mark.slow
@pytest.mark.parametrize('reader', READERS, ids=names)
def test_many_changes(reader):
    fuzz(reader, EXAMPLES)


# Files that are not plain files.
KINDS = {
    'pipe': os.mkfifo,
    'device': lambda path: path.symlink_to('/dev/zero'),
    'folder': Path.mkdir,
    'loop': lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize('kind', KINDS)
def test_pipes_devices_folders_and_loops_in_the_place_of_a_file(kind):
    for reader in READERS:
        # A loop of links reads as a missing file, which some readers do not need.
        assert try_reader(reader, make=KINDS[kind]) or kind == 'loop' or reader.name == 'tokenizer_config.json'


@pytest.mark.parametrize('name', ['config.json', 'texts.tsv', 'metrics.jsonl', 'model.safetensors', 'train/cat/0.png'])
def test_a_file_larger_than_the_memory(name):
    def sparse(path):
        with path.open('wb') as file:
            file.truncate(2**43)  # eight terabytes that take no room

    assert try_reader(next(reader for reader in READERS if reader.name == name), make=sparse)


# Findings of earlier fuzzing: contents and the messages about them.
def change(content, **changes):
    return json.dumps({**content, **changes}).encode()


def tokenizer_with(**changes):
    return change(json.loads(tokenizer_json()[0]), **changes)


def safetensors(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def entry(dtype='F32', shape=(2,), offsets=(0, 8)):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


WEIGHTS, BROKEN = 'model.safetensors', 'damaged or incomplete'
FINDINGS = [
    ('versions.json', b'{"pad_jax": []}', 'versions.json is damaged'),
    ('timing.json', b'{"seconds_per_step": 1' + b'0' * 400 + b'}', 'lacks seconds_per_step'),
    ('tokenizer_config.json', b'{"do_lower_case": "yes"}', 'tokenize_chinese_chars must be true or false'),
    ('tokenizer_config.json', change(SETTINGS, do_lower_case=None), ''),
    ('model.safetensors.index.json', b'{"weight_map": {"a": "a\\u0000b"}}', 'cannot be reached'),
    ('tokenizer.json', tokenizer_with(normalizer=None), ''),
    ('texts.tsv', b'a' + b'\t' * 10**6, 'and 999981 more'),
    ('texts.csv', b'text,label\n"the cat' + b'x' * 10**6, 'line 2 is not CSV'),
    (WEIGHTS, struct.pack('<Q', 2**60) + b'{"a": 1}', ''),
    (WEIGHTS, safetensors({'a': entry(offsets=(0, 2**60), shape=(2**58,))}), BROKEN),
    (WEIGHTS, safetensors({'a': entry(offsets=(-8, 0))}), BROKEN),
    (WEIGHTS, safetensors({'a': entry(shape=(2**32, 2**32, 2))}), BROKEN),
    (WEIGHTS, safetensors(b'{"a":' * 10_000), BROKEN),
]


@pytest.mark.parametrize(('name', 'content', 'expected'), FINDINGS, ids=lambda value: str(value)[:24])
def test_findings(name, content, expected):
    message = read_with(name, content)
    assert expected in message and len(message) < 4000


@pytest.mark.slow
@pytest.mark.parametrize('module', ['antigravity', 'tests.evil'])
def test_modules_that_a_prepared_set_names_are_not_imported(module, monkeypatch, tmp_path):
    """TFDS imports the module of a feature; other modules are refused before it can."""
    place = photos.write_prepared(tmp_path / 'tfds', photos.write_folders(tmp_path / 'folders'))
    features = (place / 'features.json').read_text()
    changed = features.replace('tensorflow_datasets.core.features.image_feature', module)
    (place / 'features.json').write_text(changed)
    asked, ask = [], importlib.import_module
    monkeypatch.setattr(importlib, 'import_module', lambda name, *rest: asked.append(name) or ask(name, *rest))
    with pytest.raises(BadInput, match='refusing to import'):
        make_source('imagenet', path=str(tmp_path / 'tfds'), batch_size=2, image_size=8, augment='resized_crop')
    assert changed != features and module not in asked


# Imports, functions and methods that could run the content of a file.
DANGERS = re.compile(
    r'^\s*(?:import|from) (?:c?pickle|dill|cloudpickle|joblib|marshal|shelve|yaml|torch|runpy|codeop?)\b'
    r'|(?<![\w.])(?:eval|exec|compile|__import__)\('
    r'|\b(?:exec_module|import_module|allow_pickle|fromfile|extractall|read_pickle|np\.load)\b',
    re.MULTILINE,
)


def test_no_module_can_run_what_it_reads():
    files = sorted(Path(pad_jax.__file__).parent.rglob('*.py'))
    assert len(files) > 60
    found = {name for path in files for name in DANGERS.findall(path.read_text())}
    # A config is the user's own Python; NumPy's load does not unpickle by default, and its fromfile reads numbers only.
    assert found <= {'import runpy', 'import_module', 'np.load', 'fromfile'}
