"""Corpora: windows, order, held-out texts, the cache of tokens, masked tokens, and bad input."""

import json
import os
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pad_jax.data import open_corpus, open_tokens, streams
from pad_jax.data.corpus import hold_out, mask_tokens
from pad_jax.data.ordering import Order
from pad_jax.data.streams import Part, Stream
from pad_jax.data.tokenization import Tokens
from pad_jax.errors import BadInput

WORDS = ['[UNK]', '[MASK]', 'the', 'cat', 'sat', 'on', 'mat', '.', '\n']


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder))
    return folder / 'pad_jax' / 'corpora'


@pytest.fixture
def tokenizer(tmp_path):
    return write_tokenizer(tmp_path / 'tokenizer.json', WORDS)


def write_tokenizer(path, words):
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token='[UNK]'))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(path))
    return str(path)


def write_texts(folder, sizes, seed=0):
    """Write random bytes to the files, by name."""
    generator = np.random.default_rng(seed)
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.integers(0, 256, size, np.uint8).tobytes())
    return folder


def open_bytes(path, window=8, batch_size=4, **arguments):
    return open_corpus(path=str(path), window=window, batch_size=batch_size, **{'vocab_size': 257, **arguments})


def read_parts(stream):
    """Twin of `Stream`: all tokens as one list."""
    return [token for part in stream.parts for token in part.path.read_bytes()[part.start : part.start + part.count]]


def cut(tokens, window):
    """Twin of the windows: (tokens, labels) of each whole window."""
    starts = range(0, len(tokens) - window, window)
    return [(tuple(tokens[at : at + window]), tuple(tokens[at + 1 : at + window + 1])) for at in starts]


def list_rows(batches):
    rows = [
        (tuple(map(int, t)), tuple(map(int, n))) for batch in batches for t, n in zip(batch['tokens'], batch['label'])
    ]
    weights = [w for batch in batches for w in batch.get('weight', np.ones(len(batch['tokens'])))]
    return [row for row, weight in zip(rows, weights, strict=True) if weight]


def join_rows(*batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
        assert one[key].dtype == other[key].dtype


SIZES = {'a.txt': 100, 'b.md': 57, 'c.py': 3, 'empty.txt': 0, 'en/d.txt': 64, 'en/deep/e.txt': 70, 'en/f.txt': 41}
REFUSED = {'.hidden': 50, '.git/x.txt': 50, 'en/.y': 20, 'en/__pycache__/d.pyc': 50}


def test_windows_are_those_of_a_list_of_all_tokens(tmp_path):
    source = open_bytes(write_texts(tmp_path, SIZES | REFUSED))
    assert list(source.train) == list(source.held) == ['en', 'text']
    names = {part.name for half in (source.train, source.held) for stream in half.values() for part in stream.parts}
    assert names == SIZES.keys() - {'empty.txt'}
    expected = [row for stream in source.train.values() for row in cut(read_parts(stream), 8)]
    count = source.spec.num_train
    assert count == len(expected) == len(set(expected))
    # Three epochs; the batches of 4 span two of them.
    rows = list_rows([source.train_batch(step) for step in range(3 * count)])
    for epoch in range(12):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == sorted(expected)
    assert rows[:count] != rows[count : 2 * count]
    assert [expected.index(row) for row in rows[:12]] == Order(count, 0).indices(0, 12).tolist()
    for domain, stream in source.held.items():
        assert list_rows(list(source.eval_batches(domain))) == cut(read_parts(stream), 8)
    assert len(list(source.eval_batches())) == source.num_eval_batches
    assert len(list_rows(list(source.eval_batches()))) == source.spec.num_eval == source.num_eval_listed


def test_says_its_spec(tmp_path):
    source = open_bytes(write_texts(tmp_path, SIZES))
    spec = source.spec
    assert (spec.num_classes, spec.class_names, spec.metrics, spec.eval_splits) == (257, (), (), ('en', 'text'))
    assert spec.bytes_per_token == {'en': 1.0, 'text': 1.0}
    assert (source.skipped, source.run_files, source.with_threads(3)) == ((), {}, source)
    assert spec.digests.keys() == {'files of corpus', 'contents of tokenizer'}
    write_texts(tmp_path, SIZES, seed=1)
    assert open_bytes(tmp_path).spec.digests == spec.digests  # names and sizes are the same
    write_texts(tmp_path, SIZES | {'a.txt': 101})
    assert open_bytes(tmp_path).spec.digests != spec.digests


@pytest.mark.parametrize('objective', ['causal', 'masked'])
def test_a_batch_has_these_arrays(tmp_path, objective):
    source = open_bytes(write_texts(tmp_path, SIZES), objective=objective)
    batch = source.train_batch(0)
    shapes = {
        'tokens': np.int32,
        'valid': bool,
        'label': np.int32,
        **({'segments': np.int32} if objective == 'masked' else {}),
    }
    assert {key: values.dtype for key, values in batch.items()} == shapes
    assert all(values.shape == (4, 8) for values in batch.values()) and batch['valid'].all()
    last = list(source.eval_batches('text'))[-1]
    assert last['weight'].dtype == np.float32 and last['weight'].shape == (4,) and last['tokens'].shape == (4, 8)
    assert (last['label'][last['weight'] == 0] == -1).all() and last['valid'].all()


@pytest.mark.parametrize('objective', ['causal', 'masked'])
@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_read_rows_of_the_same_batch(tmp_path, objective, processes):
    source = open_bytes(write_texts(tmp_path, SIZES), objective=objective, seed=2**64 - 1)
    per = 4 // processes
    parts = [slice(start, start + per) for start in range(0, 4, per)]
    for step in (0, 1, 9):
        assert_same(source.train_batch(step), join_rows(*(source.train_batch(step, rows) for rows in parts)))
    assert_same(source.scoring_batch(3, 4), join_rows(*(source.scoring_batch(3, 4, rows) for rows in parts)))
    shared = [list(source.eval_batches(rows=rows)) for rows in parts]
    for whole, *several in zip(source.eval_batches(), *shared, strict=True):
        assert_same(whole, join_rows(*several))


@pytest.mark.parametrize('objective', ['causal', 'masked'])
def test_order_is_a_function_of_seed_and_step(tmp_path, objective):
    write_texts(tmp_path, SIZES)
    source, again = (open_bytes(tmp_path, objective=objective) for _ in range(2))
    with source.train_batches(3, 6) as batches:
        for step, batch in batches:
            assert_same(batch, again.train_batch(step))
    other = open_bytes(tmp_path, objective=objective, seed=1)
    assert (other.train_batch(0)['tokens'] != source.train_batch(0)['tokens']).any()
    assert (source.scoring_batch(0, 4)['tokens'] != source.train_batch(0)['tokens']).any()
    # All seeds are evaluated on the same batches.
    for one, two in zip(source.eval_batches(), other.eval_batches(), strict=True):
        assert_same(one, two)


def make_parts(**counts):
    return [Part(name, None, 0, count) for name, count in counts.items()]


def names_of(parts):
    return ' '.join(part.name for part in parts)


def test_texts_are_held_out_by_the_hash_of_their_names():
    # sha256('b') begins 3e23, 'a' ca97, 'c' 2e7d, 'd' 18ac, 'e' 3f79: in [0, 1) 0.243, 0.791, 0.182, 0.096, 0.248.
    parts = make_parts(a=9, b=9, c=9, d=9, e=9)
    for holdout, expected in ((0.01, 'd'), (0.1, 'd'), (0.2, 'c d')):
        train, held = hold_out(parts, holdout, 5)
        assert names_of(held) == expected
        assert sorted([*train, *held], key=names_of_one) == parts
    # The other texts do not decide: a new one moves none of the old ones.
    train, held = hold_out([*parts, *make_parts(f=9, g=9)], 0.2, 5)
    assert set(names_of(held).split()) & set('abcde') == {'c', 'd'}


@pytest.mark.parametrize('sizes', [{'a': 40, 'b': 90, 'd': 4}, {'a': 40, 'b': 90, 'd': 140}])
def test_if_texts_held_out_are_too_short_or_too_long_the_longest_is_divided(sizes):
    longest = max(sizes, key=sizes.get)
    train, held = hold_out(make_parts(**sizes), 0.1, 5)  # text d is held out first
    [rest] = held
    share = sizes[longest] // 10  # 9 or 14 tokens
    assert (rest.name, rest.start, rest.count) == (longest, sizes[longest] - share, share)
    assert {part.name: part.count for part in train} == sizes | {longest: sizes[longest] - share}
    assert all(part.start == 0 for part in train)


def names_of_one(part):
    return part.name


def test_of_a_single_text_the_last_share_is_held_out(tmp_path):
    train, held = hold_out(make_parts(a=1000), 0.05, 65)
    assert [(part.start, part.count) for part in (*train, *held)] == [(0, 935), (935, 65)]
    train, held = hold_out(make_parts(a=1000), 0.2, 65)
    assert [(part.start, part.count) for part in (*train, *held)] == [(0, 800), (800, 200)]
    assert [part.count for half in hold_out(make_parts(a=60), 0.05, 65) for part in half] == [0, 60]
    path = write_texts(tmp_path, {'one.txt': 100_000}) / 'one.txt'
    source = open_bytes(path, window=64, holdout=0.05)
    assert read_parts(source.train['text']) + read_parts(source.held['text']) == list(path.read_bytes())
    # 95,000 and 5,000 bytes: (95,000 − 65) / 64 + 1 = 1,484.4 and (5,000 − 65) / 64 + 1 = 78.1 windows.
    assert (source.spec.num_train, source.spec.num_eval) == (1484, 78)


def test_a_small_folder_of_texts_suffices(tmp_path):
    for index in range(12):
        (tmp_path / f'{index}.txt').write_text('the quick brown fox jumps over the lazy dog. ' * 400)
    source = open_bytes(tmp_path, window=64, holdout=0.05)
    assert source.spec.eval_splits == ('text',)
    assert len(source.held['text']) == 18_000 and len(source.train['text']) == 11 * 18_000


def test_reads_globs(tmp_path, monkeypatch):
    write_texts(tmp_path, {'x/a.txt': 60, 'x/b.txt': 60, 'y/c.txt': 60, 'y/d.txt': 60, 'y/e.md': 60, 'f.txt': 60})
    source = open_bytes(tmp_path / '*' / '*.txt')
    assert source.spec.eval_splits == ('x', 'y') and source.spec.num_train + source.spec.num_eval == 4 * 7
    assert open_bytes(tmp_path / '**' / '*.txt').spec.eval_splits == ('text', 'x', 'y')
    monkeypatch.chdir(tmp_path)
    assert open_bytes('y/[cd].*').spec.eval_splits == ('text',)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert open_bytes('~/x').spec.eval_splits == ('text',)


def test_the_standard_library_is_a_corpus():
    source = open_corpus(name='stdlib', window=256, batch_size=8, vocab_size=256)
    assert source.spec.eval_splits == ('stdlib',) and source.spec.num_train > 10_000 and source.spec.num_eval > 500
    text = bytes(source.train_batch(5)['tokens'].astype(np.uint8).ravel()).decode(errors='replace')
    assert text.count(' ') > 100
    names = [part.name for part in source.train['stdlib'].parts]
    assert names == sorted(names) and all(
        re.fullmatch('.*[.]py', name) and 'site-packages' not in name for name in names
    )


def test_only_windows_are_read_of_a_large_file(tmp_path):
    path = tmp_path / 'large.txt'
    with open(path, 'wb') as file:
        file.truncate(2**40)  # a terabyte of holes
        file.seek(2**39)
        file.write(b'here')
    stream = Stream([Part('large.txt', path, 0, 2**40)])
    assert stream.read(2**39 - 1, 2**39 + 5).tolist() == [0, *b'here', 0]
    train, held = hold_out(stream.parts, 0.05, 9)
    assert Stream(train).read(0, 3).tolist() == Stream(held).read(0, 3).tolist() == [0, 0, 0]


def test_a_file_that_changes_during_a_run_is_named(tmp_path):
    source = open_bytes(write_texts(tmp_path, {'a.txt': 60, 'b.txt': 60}))
    for part in source.train['text'].parts:
        part.path.write_bytes(b'short')
    with pytest.raises(BadInput, match=r'.b.txt.*has become shorter|.a.txt.*has become shorter'):
        for step in range(3):
            source.train_batch(step)
    for part in source.train['text'].parts:
        part.path.unlink()
    with pytest.raises(BadInput, match='cannot be read any more: No such file'):
        source.train_batch(0)


# --- tokens -------------------------------------------------------------------------------------------------------


def write_sentences(folder, number=6, text='the cat sat on the mat .\nthe mat sat .\n'):
    for index in range(number):
        (folder / f'{index}.txt').write_text(text * (5 + index))
    return folder


def test_encodes_texts_with_a_tokenizer(tmp_path, tokenizer):
    folder = write_sentences(tmp_path / 'texts') if (tmp_path / 'texts').mkdir() is None else None
    source = open_bytes(folder, tokenizer=tokenizer, vocab_size=9)
    sentence = [2, 3, 4, 5, 2, 6, 7, 2, 6, 4, 7]  # 'the cat sat on the mat . the mat sat .' by the places in WORDS
    stream = source.held['text']
    assert stream.read(0, len(stream)).tolist() == sentence * (len(stream) // 11)
    assert source.spec.bytes_per_token == {'text': pytest.approx(39 / 11)}  # 25 + 14 characters of two lines
    assert source.run_files['tokenizer.json']['model']['vocab']['cat'] == 3
    bytes_digest = open_bytes(folder).spec.digests['contents of tokenizer']
    assert source.spec.digests['contents of tokenizer'] != bytes_digest
    total = len(stream) + len(source.train['text'])
    assert total == 11 * (5 + 6 + 7 + 8 + 9 + 10)


def test_tokens_are_made_once_and_again_if_they_are_damaged(tmp_path, tokenizer, cache, monkeypatch):
    (tmp_path / 'texts').mkdir()
    folder = write_sentences(tmp_path / 'texts')

    def read():
        source = open_bytes(folder, tokenizer=tokenizer, vocab_size=9)
        return [source.train_batch(step)['tokens'].tolist() for step in range(5)]

    made, encode = [], streams._encode_file
    monkeypatch.setattr(streams, '_encode_file', lambda path, *others: made.append(path) or encode(path, *others))
    first = read()
    assert len(made) == 6 and read() == first and len(made) == 6
    assert sorted(path.suffix for path in cache.iterdir()) == ['.json', '.tokens']
    array, index = sorted(cache.iterdir(), key=lambda path: path.suffix, reverse=True)
    content = index.read_text()
    damages = [
        lambda: array.write_bytes(array.read_bytes()[:-1]),
        lambda: array.write_bytes(b'\x07' + array.read_bytes()[1:]),
        lambda: index.write_text(content[:-5]),
        lambda: index.write_text('[]'),
        lambda: index.write_text(content.replace('"sizes": [[', '"sizes": [[1')),
        lambda: array.unlink(),
        lambda: index.unlink(),
    ]
    for number, damage in enumerate(damages, 2):
        damage()
        assert read() == first and len(made) == 6 * number
    text = (folder / '0.txt').read_text()
    os.utime(folder / '0.txt', (1, 1))
    assert read() == first and len(made) == 6 * 9  # it may have changed
    (folder / '0.txt').write_text(text.replace('cat', 'mat'))
    read()
    assert len(made) == 6 * 10
    write_tokenizer(tokenizer, [*WORDS, 'more'])
    with pytest.raises(BadInput, match='vocab_size must be at least 10'):
        read()


def test_long_texts_are_encoded_in_lines(tmp_path, tokenizer, monkeypatch):
    (tmp_path / 'texts').mkdir()
    folder = write_sentences(tmp_path / 'texts')
    whole = open_bytes(folder, tokenizer=tokenizer, vocab_size=9)
    monkeypatch.setattr(streams, 'NUM_BYTES', 10)
    monkeypatch.setattr(streams, 'NUM_TEXTS', 2)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
    parts = open_bytes(folder, tokenizer=tokenizer, vocab_size=9)
    assert_same(whole.train_batch(0), parts.train_batch(0))


def write_lines(path, *records):
    path.write_text('\n'.join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


def test_reads_json_lines(tmp_path, tokenizer):
    texts = ['a cat', 'né \u0085 ' * 9, '', 'two\nlines' * 4]
    path = write_lines(tmp_path / 'x.jsonl', *({'id': 1, ' text': text} for text in texts), '')
    source = open_bytes(path)
    tokens = [*source.train['text'].read(0, len(source.train['text']))]
    tokens += [*source.held['text'].read(0, len(source.held['text']))]
    assert bytes(tokens).decode() == ''.join(text + '\n' for text in texts)
    write_lines(tmp_path / 'x.jsonl', *({'body': 'the cat sat .'} for _ in range(30)))
    source = open_bytes(path, tokenizer=tokenizer, vocab_size=9, text_column='body')
    assert source.held['text'].read(0, 8).tolist() == [7, 2, 3, 4, 7, 2, 3, 4]  # the last 9 of 120 tokens
    assert source.spec.bytes_per_token == {'text': pytest.approx(14 / 4)}
    (tmp_path / 'y.json').write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert open_bytes(tmp_path / 'y.json', text_column='body').held['text'].read(0, 9).tobytes()


def test_tokens_encode_and_decode_any_text(tokenizer):
    made = open_tokens('')
    for text in ('', 'né 中 \x00', '[SEP]'):
        assert made.decode(made.encode(text)) == text
    assert (made.vocab_size, made.mask, made.run_files) == (256, 256, {})
    assert made.decode([0xC3, 256, 999, ord('a')]) == '\ufffda'
    made = open_tokens(tokenizer)
    assert (made.vocab_size, made.mask) == (9, 1)
    assert made.encode('the cat', 'dog').tolist() == [2, 3, 0] and made.decode(np.array([2, 3, 999])) == 'the cat'


# --- masked tokens ------------------------------------------------------------------------------------------------


def test_hides_the_right_share():
    text = np.random.default_rng(0).integers(0, 200, (2000, 40)).astype(np.int32)
    tokens, label = mask_tokens(text, Tokens(), 3, np.arange(2000))
    chosen = label >= 0
    assert (chosen.sum(1) == 6).all()  # 0.15 · 40
    assert (label[chosen] == text[chosen]).all() and (tokens[~chosen] == text[~chosen]).all()
    # All places alike: each is chosen 2000 · 0.15 = 300 times, with a deviation of √(300 · 0.85) = 16.
    assert (abs(chosen.sum(0) - 300) < 5 * 16).all()
    # Of 12,000: 80 % masks; 10 % random, of which 1 in 256 is the old one; 10 % as they were. Deviations 44, 33, 33.
    hidden, kept = (tokens[chosen] == 256).sum(), (tokens[chosen] == text[chosen]).sum()
    assert abs(hidden - 9600) < 5 * 44
    assert abs(kept - 1200 - 1200 / 256) < 5 * 33
    other = tokens[chosen & (tokens != 256) & (tokens != text)]
    assert abs(len(other) - 1200 * 255 / 256) < 5 * 33
    # Random tokens are those of the vocabulary: also those above 199, which no text has, 1200 · 56 / 256 = 262 times.
    assert abs((other >= 200).sum() - 262) < 5 * 16 and other.max() < 256


def test_hides_at_least_one_token_and_depends_on_the_number_only():
    text = np.arange(12, dtype=np.int32).reshape(4, 3)
    tokens, label = mask_tokens(text, Tokens(), 0, np.array([5, 5, 6, 7]))
    assert ((label >= 0).sum(1) == 1).all()
    assert ((label[0] >= 0) == (label[1] >= 0)).all()
    again, _ = mask_tokens(text[2:], Tokens(), 0, np.array([6, 7]))
    np.testing.assert_array_equal(again, tokens[2:])
    assert (text == np.arange(12).reshape(4, 3)).all()


def test_masks_windows_of_a_corpus(tmp_path):
    source = open_bytes(write_texts(tmp_path, SIZES), objective='masked')
    # 8 tokens are enough for a window here, and 9 for a causal one.
    assert source.spec.num_train == sum(len(stream) // 8 for stream in source.train.values())
    windows = [tuple(read_parts(s)[at : at + 8]) for s in source.train.values() for at in range(0, len(s) - 7, 8)]
    seen = []
    for step in range(source.spec.num_train // 4):
        batch = source.train_batch(step)
        seen += [tuple(row) for row in np.where(batch['label'] < 0, batch['tokens'], batch['label']).tolist()]
    assert set(seen) <= set(windows) and len(set(seen)) == len(seen)
    one, two = (source.train_batch(step)['label'] >= 0 for step in (0, 1))
    assert (one != two).any()


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'name': 'corpora'}, 'data name must be one of corpus, stdlib'),
        ({'name': 'stdlib'}, 'path must be empty for stdlib, got'),
        ({'path': ''}, "path must name a file of text or JSON lines, a folder of them or a glob for corpus, got ''"),
        ({'path': '/missing'}, "'/missing' has no files: path must name a text, a folder of texts or a glob"),
        ({'path': '/missing/*.txt'}, 'has no files'),
        ({'path': '/dev/null'}, 'has no files'),
        ({'path': 'a\0b'}, 'cannot be reached'),
        ({'on_bad': 'x'}, 'on_bad must be one of stop, skip'),
        ({'objective': 'x'}, 'objective must be one of causal, masked'),
        ({'window': 1}, r'window must be at least 2, .* got 1, 4 and 0.0'),
        ({'batch_size': 0}, 'batch_size at least 1'),
        ({'holdout': 1.0}, r'holdout in \[0, 1\)'),
        ({'vocab_size': 255}, 'vocab_size must be at least 256 for the tokens of bytes with objective=causal, got 255'),
        ({'vocab_size': 256, 'objective': 'masked'}, 'vocab_size must be at least 257'),
        ({'window': 200}, "domain 'text' .* at least 402 tokens, for a window of 200 .*, got 160"),
    ],
)
def test_refuses(tmp_path, arguments, message):
    write_texts(tmp_path, {'a.txt': 100, 'b.txt': 60})
    with pytest.raises(BadInput, match=message) as error:
        open_bytes(**{'path': tmp_path, **arguments})
    assert '\n' not in str(error.value)


def test_refuses_an_empty_folder_and_empty_files(tmp_path):
    with pytest.raises(BadInput, match='has no files'):
        open_bytes(tmp_path)
    write_texts(tmp_path, {'a.txt': 0, 'b.txt': 0})
    with pytest.raises(BadInput, match='got 0 '):
        open_bytes(tmp_path)


def test_refuses_wrong_tokenizers(tmp_path):
    write_texts(tmp_path, {'a.txt': 100})
    path = tmp_path / 'a.txt'
    words = write_tokenizer(tmp_path / 'words.json', ['[UNK]', 'the'])
    (tmp_path / 'bad.json').write_text('{}')
    for tokenizer, arguments, message in (
        (words, {'vocab_size': 1}, r"vocab_size must be at least 2 for the tokens of '.*words.json', got 1"),
        (words, {'objective': 'masked'}, r'must have the token \[MASK\] or <mask> for objective=masked'),
        (tmp_path / 'bad.json', {}, 'is not a tokenizer.json'),
        (tmp_path / 'missing.json', {}, 'cannot read'),
    ):
        with pytest.raises(BadInput, match=message):
            open_bytes(path, tokenizer=str(tokenizer), **arguments)


def test_a_tokenizer_that_cannot_encode_is_named(tmp_path):
    write_texts(tmp_path, {'a.txt': 0})
    (tmp_path / 'a.txt').write_text('the cat ' * 20)
    write_tokenizer(tmp_path / 'words.json', ['the'])  # without [UNK]
    with pytest.raises(BadInput, match=r"words.json' cannot encode a text: .*UNK"):
        open_bytes(tmp_path / 'a.txt', tokenizer=str(tmp_path / 'words.json'))


def test_bad_files_and_lines_stop_or_are_left_out(tmp_path, tokenizer, cache, caplog, monkeypatch):
    folder = tmp_path / 'texts'
    folder.mkdir()
    write_sentences(folder, 4)
    (folder / 'bad.txt').write_bytes(b'the cat\n' * 2 + 'the m\u00e9'.encode('latin-1'))
    arguments = {'path': folder, 'tokenizer': tokenizer, 'vocab_size': 9}
    bad = r"'.*bad.txt' is not UTF-8: byte 0xe9 at place 21"  # 8 + 8 + 5
    with pytest.raises(BadInput, match=bad + r" \(on_bad='skip' leaves it out\)$"):
        open_bytes(**arguments)
    assert not list(cache.iterdir())
    good = open_bytes(folder / '?.txt', tokenizer=tokenizer, vocab_size=9)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        source = open_bytes(**arguments, on_bad='skip')
        assert len(source.skipped) == 1 and re.match(bad, source.skipped[0])
        assert 'left out 1 files, lines or domains' in caplog.text
        assert_same(source.train_batch(0), good.train_batch(0))
    with pytest.raises(BadInput, match=bad):
        open_bytes(**arguments)
    monkeypatch.setattr(streams, '_decode', lambda file: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(BadInput, match='has a line that is larger than the memory'):
        open_bytes(folder / '0.txt', tokenizer=tokenizer, vocab_size=9)
    # Bytes are bytes.
    assert not open_bytes(folder, on_bad='stop').skipped


@pytest.mark.parametrize(
    'line, problem',
    [
        ('{"text": ', 'it is not JSON'),
        ('{"other": "x"}', "it has no 'text'"),
        ('{"text": null}', "'text' is not text"),
        ('[1]', 'it is not a JSON object'),
        (r'{"text": "\ud800"}', "'text' holds half a surrogate pair"),
    ],
)
def test_bad_lines_stop_or_are_left_out(tmp_path, line, problem):
    good = [{'text': f'line {number}'} for number in range(20)]
    path = write_lines(tmp_path / 'x.jsonl', *good[:2], line, *good[2:])
    with pytest.raises(BadInput, match=f"x.jsonl' line 3: {problem}"):
        open_bytes(path)
    source = open_bytes(path, on_bad='skip')
    assert len(source.skipped) == 1 and problem in source.skipped[0]
    expected = open_bytes(write_lines(tmp_path / 'y.jsonl', *good))
    np.testing.assert_array_equal(source.train_batch(0)['tokens'], expected.train_batch(0)['tokens'])
    write_lines(path, line)
    with pytest.raises(BadInput, match=f'nothing of .* is left, the first problem: .* line 1: {problem}'):
        open_bytes(path, on_bad='skip')


def test_short_domains_stop_or_are_left_out(tmp_path):
    write_texts(tmp_path, {'de/a.txt': 10, 'en/a.txt': 60, 'en/b.txt': 60})
    with pytest.raises(BadInput, match="'de'"):
        open_bytes(tmp_path)
    source = open_bytes(tmp_path, on_bad='skip')
    assert source.spec.eval_splits == ('en',) and len(source.skipped) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path, tokenizer, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    (tmp_path / 'texts').mkdir()
    with pytest.raises(BadInput, match=r'texts cannot be encoded into .*XDG_CACHE_HOME'):
        open_bytes(write_sentences(tmp_path / 'texts'), tokenizer=tokenizer, vocab_size=9)


def test_bert_reads_masked_windows_between_cls_and_sep(tmp_path):
    (tmp_path / 'vocab.txt').write_text(
        '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'cat', '##s', '.'])
    )
    (tmp_path / 'a.txt').write_text('the cats . ' * 50)
    arguments = {'tokenizer': str(tmp_path / 'vocab.txt'), 'vocab_size': 9, 'objective': 'masked'}
    source = open_bytes(tmp_path / 'a.txt', **arguments)
    text = [5, 6, 7, 8] * 50  # 200 tokens: 190 to train on, in windows of 8 − 2 tokens, and 10 to evaluate on
    assert (source.spec.num_train, source.spec.num_eval) == (31, 1)
    seen = []
    for step in range(7):
        batch = source.train_batch(step)
        assert (batch['tokens'][:, [0, -1]] == [2, 3]).all() and (batch['label'][:, [0, -1]] == -1).all()
        assert ((batch['label'] >= 0).sum(1) == 1).all() and batch['valid'].all()
        seen += np.where(batch['label'] < 0, batch['tokens'], batch['label'])[:, 1:-1].tolist()
    assert len(seen) == 28 and all(row in (text[:6], text[2:8]) for row in seen)
    with pytest.raises(BadInput, match='window must be at least 3'):
        open_bytes(tmp_path / 'a.txt', window=2, **arguments)
    causal = open_bytes(tmp_path / 'a.txt', **{**arguments, 'objective': 'causal'})
    assert not set(causal.train_batch(0)['tokens'].ravel()) & {2, 3}
    tokens = open_tokens(arguments['tokenizer'])
    assert tokens.decode(tokens.encode('the cats')) == 'the cats'
