"""The check of plain English finds what it forbids; `make lint` runs it on the package, the configs and the pages."""

import pytest

from tests.prose import check_markdown, check_python, check_text


@pytest.mark.parametrize(
    'source, complaint',
    [
        ('def f():\n    """What is dead."""', "docstring begins with 'What'"),
        ('class A:\n    """Whether it is."""', "docstring begins with 'Whether'"),
        ('"""Of one layer."""', "docstring begins with 'Of'"),
        ('x = 1  # the masks alone', "avoid 'alone'"),
        ('raise ValueError(f"{x} is none of them")', "avoid 'is none'"),
        ('"""Select.\n\n    >>> whatever()\n"""', None),
        ('"""What changes with K?"""', None),
        ('import re  # whatever', "avoid 'whatever'"),
    ],
)
def test_python(source, complaint):
    assert [found for _, found in check_python(source)] == ([complaint] if complaint else [])


def test_long_sentences_and_code_that_counts_as_a_word():
    words = ' '.join(['word'] * 20)
    assert check_text(f'{words}. {words}.') == []
    assert check_text(f'`a b c` {words}') == ['21 words in one sentence: code word word word word word word word ...']


def test_pages_are_read_without_code_and_tables():
    page = 'Run goes on.\n\n    whatever\n\n```python\nwhatever\n```\n\n| whatever | nobody |\n'
    assert check_markdown(page) == [(1, "avoid 'goes on'")]
