"""What is there stays there until something whole takes its place."""

import pathlib

import pytest

from pad_jax.data.preparation.folders import fill_folder


@pytest.mark.parametrize('stop_after', [1, 2])
def test_a_process_that_is_told_to_stop_while_folders_are_renamed(tmp_path, monkeypatch, stop_after):
    (folder := tmp_path / 'set').mkdir()
    (folder / 'former').touch()
    rename, done = pathlib.Path.rename, []

    def rename_and_stop(path, target):
        rename(path, target)
        done.append(path)
        if len(done) == stop_after:
            raise SystemExit(143)

    monkeypatch.setattr(pathlib.Path, 'rename', rename_and_stop)
    with pytest.raises(SystemExit), fill_folder(folder, overwrite=True) as incomplete:
        (incomplete / 'new').touch()
    assert [path.name for path in folder.iterdir()] == [{1: 'former', 2: 'new'}[stop_after]]
    assert not incomplete.exists()
