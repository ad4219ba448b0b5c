"""Small files made wrong at random, for every reader: it reads them or refuses them in one line that names the file.

Nothing else may happen: no other exception, no hang, no crash, no memory without end, nothing written beside its place.
A few examples of each here, with `-m slow` as many as FUZZ_EXAMPLES says. What was found so is kept in
`findings_test.py`.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.hostile.mutations import mutations, refusal
from tests.hostile.readers import READERS, readers_of_sets

NUM_QUICK, NUM_LONG = 20, int(os.environ.get('FUZZ_EXAMPLES', 3000))


def fuzz(reader, count, seed_of=None):
    seeds = reader.seeds()

    @hypothesis.settings(
        max_examples=max(3, int(count * reader.fraction)),
        deadline=None,  # `limits` has one of its own, which a first import does not break
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.sampled_from(seeds).flatmap(mutations))
    def try_content(content):
        says = try_reader(reader, content)
        assert '\n' not in says, says

    try_content()


def try_reader(reader, content):
    """What the reader says of that content, '' if it reads it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        place = Path(folder) / 'inside'
        place.mkdir()
        reader.prepare(place)
        (place / reader.name).write_bytes(content)
        with contextlib.redirect_stdout(io.StringIO()):
            says = refusal(reader.read, place)
        assert [path.name for path in Path(folder).iterdir()] == ['inside']
    # 'inside' is in every path that a message can name.
    assert not says or 'inside' in says or reader.nameless, says
    return says


def check_seeds(readers):
    for reader in readers:
        for content in reader.seeds():
            assert try_reader(reader, content) == '', reader.name


def names(reader):
    return f'{reader.name}-{getattr(reader.read, "__name__", "read")}'


@pytest.mark.parametrize('reader', READERS, ids=names)
def test_a_few(reader):
    check_seeds([reader])
    fuzz(reader, NUM_QUICK)


def test_a_few_of_prepared_sets():
    readers = readers_of_sets()
    check_seeds(readers)
    for reader in readers:
        fuzz(reader, NUM_QUICK)


@pytest.mark.slow
@pytest.mark.parametrize('reader', READERS, ids=names)
def test_many(reader):
    fuzz(reader, NUM_LONG)


@pytest.mark.slow
@pytest.mark.parametrize('number', range(7))
def test_many_of_prepared_sets(number):
    fuzz(readers_of_sets()[number], NUM_LONG)
