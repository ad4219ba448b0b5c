"""Files that were made to do harm, and what fuzzing has found: each stays refused, in one line that says why."""

import contextlib
import json
import os
import struct
from pathlib import Path

import pytest
from PIL import Image

from pad_jax.data import make_source
from pad_jax.errors import BadInput
from pad_jax.files import MOST_DEPTH
from pad_jax.pretrained.weights import read_weights
from pad_jax.training.cli import MAX_CHARACTERS, exit_status
from tests.data.photos import claim_size
from tests.hostile.fuzz_test import try_reader
from tests.hostile.mutations import refusal
from tests.hostile.readers import (
    INDEX,
    LAYERS,
    METRICS,
    PARTITION,
    PHOTOS_PLACE,
    READERS,
    RTE_PLACE,
    SETTINGS,
    picture,
    read_image,
    readers_of_sets,
    tokenizer_json,
    weights,
    write_photos,
)

DEEP = b'[' * 100_000
JSON_FILES = [reader for reader in READERS if reader.name.endswith(('.json', '.jsonl'))]


def read_with(name, content):
    """What each of the readers of that name says of the content."""
    found = {try_reader(reader, content) for reader in READERS if reader.name == name}
    assert found
    return ' | '.join(sorted(found))


# JSON.
@pytest.mark.parametrize(
    'content', [DEEP, b'{"a":' * 100_000, b'{"step":' * 5000 + b'1' + b'}' * 5000, b'\xff\xfe', b'']
)
@pytest.mark.parametrize('reader', JSON_FILES, ids=lambda reader: reader.name)
def test_json_that_is_none_or_nests_without_end(reader, content):
    content = content + b'\n' if reader.name.endswith('l') else content
    if content.strip() or reader.name != 'metrics.jsonl':
        assert try_reader(reader, content)


def test_json_may_nest_as_deep_as_anybody_needs():
    for depth, fits in ((MOST_DEPTH - 1, True), (MOST_DEPTH, False)):
        says = read_with('config.json', b'{"a":' * depth + b'1' + b'}' * depth)
        assert ('unknown config key a.a.a' in says) == fits and ('nests more than 100 deep' in says) != fits


def change(content, **changes):
    return json.dumps({**content, **changes}).encode()


@pytest.mark.parametrize(
    ('name', 'content', 'says'),
    [
        ('data.json', b'{"class_names": "cat", "num_train": 1, "num_eval": 1}', 'class_names must be texts'),
        ('metrics.jsonl', b'{"step": null, "split": "train"}\n', 'line 1: not a row of metrics'),
        ('metrics.jsonl', b'{"step": 1, "split": ["train"]}\n', 'line 1: not a row of metrics'),
        ('metrics.jsonl', b'{"step": 1, "split": "train"}\n\xff\n', "line 2: not a row of metrics: '\ufffd'"),
        ('timing.json', b'{"seconds_per_step": 1' + b'0' * 400 + b'}', 'lacks seconds_per_step'),
        ('timing.json', b'{"seconds_per_step": NaN}', 'lacks seconds_per_step'),
        ('partition.json', change(PARTITION, totals={**PARTITION['totals'], 'positions': 10**400}), 'for positions'),
        ('partition.json', change(PARTITION, totals={**PARTITION['totals'], 'positions': -1}), 'for positions'),
        ('partition.json', change(PARTITION, totals={**PARTITION['totals'], 'dynamic_share': 2}), 'for dynamic_share'),
        ('partition.json', change(PARTITION, layers=[{**LAYERS[0], 'name': '\ud800'}]), 'layer 1 lacks name'),
        ('partition.json', change(PARTITION, layers=[{**LAYERS[0], 'name': '[/x] $x_{ \\frac'}]), ''),
        ('tokenizer_config.json', b'{"do_lower_case": "yes"}', "do_lower_case must be true or false, got 'yes'"),
        ('tokenizer_config.json', b'{"strip_accents": 0.5}', 'strip_accents must be true or false, got 0.5'),
        ('tokenizer_config.json', change(SETTINGS, do_lower_case=None), ''),
        ('model.safetensors.index.json', b'{"weight_map": {"a": "%s"}}' % (b'x' * 999), 'lacks xxx'),
        ('model.safetensors.index.json', b'{"weight_map": {"a": "../x.safetensors"}}', 'to file names'),
        ('model.safetensors.index.json', b'{"weight_map": {"a": ".."}}', 'lacks ..'),
        ('model.safetensors.index.json', b'{"weight_map": {"a": "a\\u0000b"}}', 'lacks a'),
        ('model.safetensors.index.json', change(INDEX), ''),
    ],
)
def test_values_that_are_json_and_nothing_else(name, content, says):
    assert says in read_with(name, content)
    assert says or not read_with(name, content)


def test_a_run_whose_rows_lack_what_is_drawn():
    rows = [{name: value for name, value in row.items() if name != 'accuracy'} for row in METRICS]
    assert 'step 1 has no number for accuracy' in read_with(
        'metrics.jsonl', '\n'.join(map(json.dumps, rows)).encode() + b'\n'
    )


# Texts.
def tokenizer_with(**changes):
    return change(json.loads(tokenizer_json()[0]), **changes)


DOUBLE = {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'aa'}
SLOW = {'type': 'Split', 'pattern': {'Regex': '(a+)+$'}, 'behavior': 'Removed', 'invert': False}


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (
            {'normalizer': {'type': 'Sequence', 'normalizers': [DOUBLE] * 40}},
            'normalizer must be made of BertNormalizer',
        ),
        ({'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [SLOW]}}, "got 'Split'"),
        ({'pre_tokenizer': SLOW}, 'pre_tokenizer must be made of BertPreTokenizer'),
        ({'normalizer': {'type': 'Sequence', 'normalizers': [{'type': 'Lowercase'}, {'type': 'NFD'}]}}, ''),
        ({'normalizer': None}, ''),
    ],
)
def test_a_tokenizer_that_doubles_or_backtracks_without_end(changes, says):
    found = read_with('tokenizer.json', tokenizer_with(**changes))
    assert says in found and bool(says) == bool(found)


def test_a_tokenizer_that_says_one_thing_twice():
    content = tokenizer_with(pre_tokenizer=None).decode()
    slow = content.replace('"pre_tokenizer": null', f'"pre_tokenizer": {json.dumps(SLOW)}, "pre_tokenizer": null')
    assert slow != content and read_with('tokenizer.json', slow.encode()) == ''


def test_a_tokenizer_that_divides_words_of_any_length():
    model = json.loads(tokenizer_json()[0])['model'] | {'max_input_chars_per_word': 10**9}
    assert 'max_input_chars_per_word must be at most 1000' in read_with('tokenizer.json', tokenizer_with(model=model))


@pytest.mark.parametrize(
    ('name', 'content', 'says'),
    [
        ('texts.tsv', b'text\tlabel\n' + b'\0' * 10**6, 'it has 1 fields, but there are 2 columns'),
        ('texts.tsv', b'text\tlabel\rthe cat\tyes\rthe dog\tno\r', "has no column 'label'"),
        ('texts.tsv', b'a' + b'\t' * 10**6, 'and 999981 more'),
        ('texts.tsv', 'text\tlabel\nthe cat\tyes'.encode('utf-16'), 'line 1 is not UTF-8: byte 0xff'),
        ('texts.tsv', 'text\tlabel\nein Mädchen\tja'.encode('latin-1'), 'line 2 is not UTF-8: byte 0xe4'),
        ('texts.csv', b'text,label\n"the cat' + b'x' * 10**6, 'line 2 is not CSV'),
        ('texts.csv', b'text,label\n' + b'"' * 10**6, 'line 2'),
        ('texts.jsonl', b'{"text": "a", "label": "b"}\n' + DEEP, 'line 2: it is not JSON'),
        ('texts.jsonl', b'{"text": "a", "label": ' + b'9' * 5000 + b'}', 'line 1: it is not JSON'),
        ('texts.jsonl', b'{"text": "\\ud800", "label": "b"}', "line 1: 'text' holds half a surrogate pair"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_tables(name, content, says):
    found = read_with(name, content)
    assert says in found and len(found) < 2000


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_harm():
    rows = '\r\n'.join(['text\tlabel', *(f'the cat {i}\t{i % 2}' for i in range(12))])
    assert read_with('texts.tsv', b'\xef\xbb\xbf' + rows.encode()) == ''


# Images.
BITMAP = struct.Struct('<2sIHHIIiiHHIIiiII')


def claims(kind, width, height):
    """A small file of that kind whose header claims a size."""
    if kind == 'PNG':
        return claim_size(width, height)
    if kind == 'BMP':
        return BITMAP.pack(b'BM', 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    content = bytearray(picture(kind))
    mark, skip, layout = {'JPEG': (b'\xff\xc0', 5, '>HH'), 'GIF': (b'GIF', 6, '<HH'), 'WEBP': (b'VP8 ', 14, '<HH')}[
        kind
    ]
    place = content.index(mark) + skip
    sides = (height, width) if kind == 'JPEG' else (width, height)
    content[place : place + 4] = struct.pack(layout, *(min(side, 16383 if kind == 'WEBP' else 65535) for side in sides))
    return bytes(content)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'WEBP', 'BMP'])
def test_an_image_that_claims_to_be_huge(kind, tmp_path):
    path = tmp_path / 'huge.png'
    path.write_bytes(claims(kind, 100_000, 100_000))
    says = refusal(lambda _: read_image(str(path), 8), tmp_path)
    assert f"'{path}': " in says and 'pixels' in says and 'at most 89,478,485 are read. Shrink it' in says
    write_photos(tmp_path)
    path.rename(tmp_path / 'train' / 'cat' / '1.png')
    for name in ('folder', 'imagenet'):
        with contextlib.ExitStack() as stack:
            caught = stack.enter_context(
                pytest.raises(BadInput, match=r"train/cat/1\.png'.*at most 89,478,485 are read")
            )
            source = make_source(name, path=str(tmp_path), batch_size=3, image_size=8, augment='crop')
            source.scoring_batch(0, 3)
        assert '\n' not in str(caught.value)


def test_another_library_cannot_lift_the_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    (tmp_path / 'huge.png').write_bytes(claims('PNG', 100_000, 100_000))
    with pytest.raises(BadInput, match=r'10,000,000,000 pixels, at most 89,478,485'):
        read_image(str(tmp_path / 'huge.png'), 8)


def test_a_photo_of_a_thousand_scans(tmp_path):
    """Each takes 141 bytes of a file, and a sixth of a second at the most pixels that are read."""
    content = picture('JPEG', 100, progressive=True)
    last = content.rindex(b'\xff\xda')
    path = tmp_path / 'slow.jpg'
    path.write_bytes(content[:-2] + content[last:-2] * 1000 + content[-2:])
    says = refusal(lambda _: read_image(str(path), 8), tmp_path)
    assert 'scans, at most 100 are decoded' in says and str(path) in says
    path.write_bytes(content)
    assert read_image(str(path), 8).shape == (8, 8, 3)


# Weights.
def safetensors(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def entry(dtype='F32', shape=(2,), offsets=(0, 8)):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


@pytest.mark.parametrize(
    'content',
    [
        struct.pack('<Q', 2**60) + b'{"a": 1}',
        struct.pack('<Q', 2**64 - 1) + b'{"a": 1}',
        safetensors({'a': entry(offsets=(0, 2**60), shape=(2**58,))}, bytes(8)),
        safetensors({'a': entry(offsets=(8, 16))}, bytes(8)),
        safetensors({'a': entry(offsets=(8, 0))}, bytes(8)),
        safetensors({'a': entry(offsets=(-8, 0))}, bytes(8)),
        safetensors({'a': entry(), 'b': entry()}, bytes(8)),
        safetensors({'a': entry(), 'b': entry(offsets=(4, 12))}, bytes(12)),
        safetensors({'a': entry(shape=(2**32, 2**32, 2))}, bytes(8)),
        safetensors({'a': entry(shape=(-2,))}, bytes(8)),
        safetensors({'a': entry('F33')}, bytes(8)),
        safetensors({'a': entry('object')}, bytes(8)),
        safetensors({'a': entry()}, bytes(80)),
        safetensors(b'{"a":' * 10_000, bytes(8)),
        safetensors(b'{' + b'"a": {}, ' * 10_000 + b'}'),
        safetensors(b'{"\xff": 1}'),
        b'',
        b'\0' * 8,
        weights()[0][:-1],
    ],
    ids=lambda content: str(content[8:60]),
)
def test_weights_that_lie(content):
    assert 'damaged or incomplete' in read_with('model.safetensors', content) or 'not safetensors' in read_with(
        'model.safetensors', content
    )


@pytest.mark.parametrize('dtype', ['BF16', 'F8_E4M3', 'F8_E5M2', 'F8_E8M0', 'F4', 'F6_E2M3', 'C64', 'U64', 'BOOL'])
def test_weights_of_any_kind_are_read_or_refused(dtype, tmp_path):
    size = {'BF16': 2, 'C64': 8, 'U64': 8}.get(dtype, 1)
    count = 8 if dtype in ('F4', 'F6_E2M3') else 2
    length = {'F4': 4, 'F6_E2M3': 6}.get(dtype, size * count)
    (tmp_path / 'model.safetensors').write_bytes(safetensors({'a': entry(dtype, (count,), (0, length))}, bytes(length)))
    says = refusal(read_weights, tmp_path)
    unknown = 'a type of number that cannot be read' in says or 'Dtype not understood' in says
    assert not says or (str(tmp_path) in says and unknown), says


# Sets of TFDS.
def reader_of(name):
    return next(reader for reader in readers_of_sets() if reader.name == name)


@pytest.mark.parametrize(
    ('place', 'old', 'new', 'says'),
    [
        (PHOTOS_PLACE, '"{DATASET}-{SPLIT}', '"../../{DATASET}-{SPLIT}', "filepathTemplate '../../{DATASET}-{SPLIT}"),
        (PHOTOS_PLACE, '"name": "train"', '"name": "../train"', "name '../train' "),
        (PHOTOS_PLACE, '"{DATASET}-{SPLIT}', '"{DATASET-{SPLIT}', 'cannot read'),
        (PHOTOS_PLACE, '"array_record"', '["array_record"]', 'does not describe a data set of TFDS'),
        (PHOTOS_PLACE, '"splits": [', '"splits": [3, ', 'does not describe a data set of TFDS'),
        (RTE_PLACE, '"name": "glue"', '"name": "/etc/glue"', "name '/etc/glue' "),
    ],
)
def test_sets_that_lead_out_or_contradict_themselves(place, old, new, says):
    reader = reader_of(str(place / 'dataset_info.json'))
    (content,) = reader.seeds()
    assert old in content.decode() and says in try_reader(reader, content.decode().replace(old, new).encode())


# Files that are none.
def fifo(path):
    os.mkfifo(path)


def zero(path):
    path.symlink_to('/dev/zero')


def loop(path):
    path.symlink_to(path)


def sparse(path):
    with path.open('wb') as file:
        file.truncate(2**43)


@pytest.mark.parametrize('make', [fifo, zero, Path.mkdir, loop], ids=lambda make: make.__name__)
@pytest.mark.parametrize('reader', [reader for reader in READERS if not reader.nameless], ids=lambda r: r.name)
def test_pipes_devices_folders_and_loops_in_the_place_of_a_file(reader, make, tmp_path):
    reader.prepare(tmp_path)
    (tmp_path / reader.name).unlink(missing_ok=True)
    make(tmp_path / reader.name)
    says = refusal(reader.read, tmp_path)
    # A loop of links is as if nothing was there, which some readers do without.
    assert says or make == loop or reader.name == 'tokenizer_config.json'


@pytest.mark.parametrize('name', ['config.json', 'texts.tsv', 'metrics.jsonl', 'model.safetensors', 'image'])
def test_a_file_larger_than_the_memory(name, tmp_path):
    reader = next(reader for reader in READERS if reader.name == name)
    reader.prepare(tmp_path)
    sparse(tmp_path / name)  # eight terabytes that take no room
    assert str(tmp_path) in refusal(reader.read, tmp_path)


# What is said.
def test_what_a_file_holds_cannot_move_the_cursor_or_fill_the_screen(capsys):
    def command():
        raise BadInput('bad \x1b[2J\n\x07' + 'é' * 10**6)

    assert exit_status(command) == 2
    line = capsys.readouterr().err
    assert line.startswith('error: bad \\x1b[2J \\x07ééé') and line.count('\n') == 1
    assert len(line) < MAX_CHARACTERS + 100 and line.endswith('characters more\n')
