"""Small files made wrong, and what a reader may do with one: read it, or refuse it in one line.

A mutation keeps most of a file, so that what is wrong lies behind what a reader checks first.
"""

import contextlib
import resource
import signal
from pathlib import Path

from hypothesis import strategies as st

from pad_jax.errors import BadInput

SECONDS = 20
"""Far beyond what a file of these sizes takes on a busy machine."""
GIGABYTES = 4
MOST_EDITS = 4
# What readers stumble over: ends of text, numbers beyond any type, nesting, names that lead out, marks of a beginning.
TOKENS = (
    b'',
    b'\0',
    b'\n',
    b'\r',
    b'\t',
    b'"',
    b',',
    b'{',
    b'[]',
    b'[' * 3000,
    b'{"a":' * 3000,
    b'\xff' * 8,
    b'\x80' + b'\0' * 7,
    b'\x7f' + b'\xff' * 7,
    b'\xef\xbb\xbf',
    b'\xed\xa0\x80',
    b'\\ud800',
    b'../../x',
    b'-1',
    b'1e999',
    b'NaN',
    b'9' * 30,
    b'9' * 5000,
    b'null',
    b'true',
    b'"a"',
    b'$',
    b'[/x]',
)


class TooSlow(BaseException):
    """A reader that has not come back. No Exception: a reader that catches those must not catch this."""


@st.composite
def mutations(draw, content: bytes) -> bytes:
    """The content after a few edits."""
    for _ in range(draw(st.integers(1, MOST_EDITS))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.sampled_from((0, 1, 2, 4, 8, 16, 64, 512))))
        kind = draw(st.sampled_from(('flip', 'cut', 'overwrite', 'insert', 'remove', 'repeat', 'move')))
        if kind == 'flip' and start < len(content):
            flipped = content[start] ^ (1 << draw(st.integers(0, 7)))
            content = content[:start] + bytes([flipped]) + content[start + 1 :]
        elif kind == 'cut':
            content = content[:start]
        elif kind in ('overwrite', 'insert'):
            token = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
            content = content[:start] + token + content[start + len(token) * (kind == 'overwrite') :]
        elif kind == 'remove':
            content = content[:start] + content[stop:]
        elif kind == 'repeat':
            content = content[:start] + content[start:stop] * draw(st.sampled_from((2, 3, 300))) + content[stop:]
        elif kind == 'move':
            where = draw(st.integers(0, len(content)))
            content = content[:where] + content[start:stop] + content[where:]
    return content


@contextlib.contextmanager
def limits():
    """At most so many seconds, and so much more memory than there is now, for what happens inside."""

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


def refusal(read, folder: Path) -> str:
    """What a reader says of the folder that it is given, '' if it reads it; anything but `BadInput` is passed on."""
    with limits():
        try:
            read(folder)
        except BadInput as error:
            return str(error)
    return ''
