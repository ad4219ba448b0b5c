import pytest

from pad_jax.errors import BadInput
from pad_jax.files import fill_folder


def test_a_folder_is_complete_or_absent_and_nothing_else_is_removed(tmp_path):
    """Two exports side by side: E/a is stopped in the middle, after E/b has been finished in the same new parents."""
    parents = tmp_path / 'new' / 'E'
    with pytest.raises(KeyboardInterrupt), fill_folder(parents / 'a') as first:
        (first / 'weights').write_text('half')
        with fill_folder(parents / 'b') as second:
            (second / 'weights').write_text('whole')
        (parents / 'notes.txt').write_text('mine')
        raise KeyboardInterrupt
    assert {path.name: path.is_file() for path in parents.iterdir()} == {'b': False, 'notes.txt': True}
    assert (parents / 'b' / 'weights').read_text() == 'whole'


def test_empty_parents_that_were_made_are_removed_again(tmp_path):
    said = r"'.*a\.incomplete' cannot be written: no space"
    with pytest.raises(BadInput, match=said), fill_folder(tmp_path / 'old' / 'new' / 'a'):
        (tmp_path / 'old' / 'notes').mkdir()
        raise OSError('no space')
    assert [path.name for path in (tmp_path / 'old').iterdir()] == ['notes']
    with pytest.raises(ValueError), fill_folder(tmp_path / 'old' / 'new' / 'a'):
        raise ValueError
    assert [path.name for path in (tmp_path / 'old').iterdir()] == ['notes']


def test_a_former_folder_stays_until_the_new_one_is_complete(tmp_path):
    with fill_folder(tmp_path / 'a') as folder:
        (folder / 'weights').write_text('old')
    with pytest.raises(ValueError), fill_folder(tmp_path / 'a') as folder:
        (folder / 'weights').write_text('half')
        raise ValueError
    assert [(path.name, path.read_text()) for path in (tmp_path / 'a').iterdir()] == [('weights', 'old')]
    with fill_folder(tmp_path / 'a') as folder:
        (folder / 'other').write_text('new')
    assert [path.name for path in tmp_path.rglob('*')] == ['a', 'other']
