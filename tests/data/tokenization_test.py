import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from pad_jax.data.tokenization import open_vocabulary
from pad_jax.errors import BadInput
from tests.data.glue_miniatures import VOCABULARY, write_vocabulary

IDS = {token: number for number, token in enumerate(VOCABULARY)}


@pytest.fixture
def vocabulary(tmp_path):
    return write_vocabulary(tmp_path)


def encode(path, *texts, max_length=32):
    """The tokens of one example as words, and how many of them are in the first segment."""
    tokens = open_vocabulary(path, max_length).encode([[text] for text in texts])
    assert tokens.ids.dtype == tokens.first_lengths.dtype == np.int32 and tokens.starts.dtype == np.int64
    assert tokens.starts.tolist() == [0, len(tokens.ids)]
    return [VOCABULARY[number] for number in tokens.ids], tokens.first_lengths.tolist()[0]


def write_tokenizer_json(vocabulary, path):
    """The same vocabulary as a tokenizer.json with padding, truncation and a template of its own."""
    tokenizer = open_vocabulary(vocabulary, 8)._tokenizer
    tokenizer.add_special_tokens(['[PAD]', '[UNK]', '[CLS]', '[SEP]'])
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(9, strategy='only_first')
    tokenizer.save(str(path))
    return str(path)


def test_texts_become_pieces_between_marks_and_pairs_two_segments(vocabulary):
    expected = ['[CLS]', 'the', 'cat', '##s', 'sat', '"', '[UNK]', '[SEP]']
    assert encode(vocabulary, 'The  CATS sat" zebra') == (expected, 8)
    assert encode(vocabulary, 'Café') == (['[CLS]', 'cafe', '[SEP]'], 3)
    assert encode(vocabulary, '') == (['[CLS]', '[SEP]'], 2)
    expected = ['[CLS]', 'it', 'ran', '[SEP]', 'did', 'it', '?', '[SEP]']
    assert encode(vocabulary, 'it ran', 'did it?') == (expected, 4)
    assert encode(vocabulary, '', 'it') == (['[CLS]', '[SEP]', 'it', '[SEP]'], 2)


def test_a_text_cannot_forge_marks(vocabulary, tmp_path):
    for path in (vocabulary, write_tokenizer_json(vocabulary, tmp_path / 'tokenizer.json')):
        words, first = encode(path, 'it [SEP] [PAD]', 'ran')
        assert (words.count('[SEP]'), words.count('[PAD]'), first) == (2, 0, len(words) - 2)


def test_a_single_text_loses_its_end_and_of_a_pair_the_longer_one(vocabulary):
    words, _ = encode(vocabulary, 'the cat sat on the mat it is', max_length=8)
    assert words == ['[CLS]', 'the', 'cat', 'sat', 'on', 'the', 'mat', '[SEP]']
    words, _ = encode(vocabulary, 'it ran', 'the cat sat on the mat', max_length=9)
    assert words == ['[CLS]', 'it', 'ran', '[SEP]', 'the', 'cat', 'sat', 'on', '[SEP]']


def test_vocab_txt_and_tokenizer_json_agree(vocabulary, tmp_path):
    texts = [['The cats "sat', 'é', '', 'it ' * 40], ['cafés', 'ran [CLS]', 'a', 'on ' * 40]]
    path = write_tokenizer_json(vocabulary, tmp_path / 'tokenizer.json')
    one, other = (open_vocabulary(name, 16) for name in (vocabulary, path))
    assert (one.pad, one.vocab_size) == (other.pad, other.vocab_size) == (0, len(VOCABULARY))
    for field in ('ids', 'starts', 'first_lengths'):
        np.testing.assert_array_equal(getattr(one.encode(texts), field), getattr(other.encode(texts), field))


@pytest.mark.parametrize(
    'more, settings, expected',
    [
        ([], None, 'cat'),
        (['Cat'], None, 'Cat'),
        (['Cat'], {'do_lower_case': True}, 'cat'),
        (['Cat'], {'do_lower_case': False}, 'Cat'),
        ([], {'do_lower_case': False}, '[UNK]'),
    ],
)
def test_case_is_told_by_the_settings_or_by_the_vocabulary(tmp_path, more, settings, expected):
    tokens = [*VOCABULARY, *more]
    (tmp_path / 'vocab.txt').write_text('\n'.join(tokens))
    if settings is not None:
        (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
    ids = open_vocabulary(str(tmp_path / 'vocab.txt'), 8).encode([['Cat']]).ids
    assert tokens[ids[1]] == expected


@pytest.mark.parametrize('settings', [{}, {'do_lower_case': False}, {'strip_accents': False}])
def test_what_it_describes_encodes_the_same_without_the_files_beside_it(tmp_path, settings):
    path, kept = tmp_path / 'vocab.txt', tmp_path / 'kept' / 'tokenizer.json'
    path.write_text('\n'.join([*VOCABULARY, 'Cat', 'café']))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
    texts = [['Cat', 'cat [SEP] É'], ['café', 'it ' * 40]]
    first = open_vocabulary(str(path), 16)
    kept.parent.mkdir()
    kept.write_text(json.dumps(first.describe()))
    again = open_vocabulary(str(kept), 16)
    assert again.vocab_size == first.vocab_size == len(VOCABULARY) + 2
    for field in ('ids', 'starts', 'first_lengths'):
        np.testing.assert_array_equal(getattr(again.encode(texts), field), getattr(first.encode(texts), field))
    assert again.describe() == first.describe()


def test_take_fills_up_and_marks_segments_and_validity(vocabulary):
    tokens = open_vocabulary(vocabulary, 10).encode([['it', 'the cat'], ['ran', 'sat on the mat it ran']])
    batch = tokens.take(np.array([1, 0, 1]))
    words = [[VOCABULARY[number] for number in row] for row in batch['tokens']]
    long = ['[CLS]', 'the', 'cat', '[SEP]', 'sat', 'on', 'the', 'mat', 'it', '[SEP]']
    assert words == [long, ['[CLS]', 'it', '[SEP]', 'ran', '[SEP]', *['[PAD]'] * 5], long]
    segments = [[0] * 4 + [1] * 6, [0, 0, 0, 1, 1, 0, 0, 0, 0, 0], [0] * 4 + [1] * 6]
    np.testing.assert_array_equal(batch['segments'], segments)
    np.testing.assert_array_equal(batch['valid'].sum(1), [10, 5, 10])
    assert [batch[key].dtype for key in ('tokens', 'segments', 'valid')] == [np.int32, np.int32, np.bool_]


def refused(path, message, max_length=8):
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        open_vocabulary(path if path is None else str(path), max_length)
    assert '\n' not in str(caught.value)


def test_what_is_refused(vocabulary, tmp_path):
    refused(vocabulary, 'max_length must be at least 8, got 7', max_length=7)
    for path in (None, '', tmp_path):
        refused(path, f"vocabulary must name a vocab.txt or tokenizer.json, got '{path or ''}'")
    refused(tmp_path / 'none.txt', 'No such file or directory')
    path = tmp_path / 'vocab.txt'
    path.write_text('a\n[CLS]\n[SEP]\n')
    refused(path, "vocab.txt' has no [PAD], [UNK]: it is not a vocabulary of BERT")
    path.write_text('\n'.join([*VOCABULARY, 'cat']))
    refused(path, "has the token 'cat' more than once")
    path.write_bytes(b'[PAD]\nca\xff\n')
    refused(path, 'line 2 is not UTF-8')
    path.write_text('')
    refused(path, 'is empty')
    path = tmp_path / 'tokenizer.json'
    path.write_text('{"version": ')
    refused(path, 'is not a tokenizer.json')
    Tokenizer(models.BPE()).save(str(path))
    refused(path, 'must hold a WordPiece model, got BPE')
    write_vocabulary(tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text('3')
    refused(tmp_path / 'vocab.txt', 'tokenizer_config.json is damaged')
