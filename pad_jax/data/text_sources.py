"""Where texts come from. Adding a source is one module and one row of `TEXT_SOURCES`.

As for images a source says its `spec`, and its batches are pure functions of (seed, step).
"""

from collections.abc import Callable, Sequence

from pad_jax.data.glue_source import open_glue
from pad_jax.data.ordering import check_seed
from pad_jax.data.text_folder import open_text_files
from pad_jax.data.text_source import TextSource
from pad_jax.data.tokenization import WordPieces
from pad_jax.errors import BadInput

TEXT_SOURCES: dict[str, Callable[..., TextSource]] = {'glue': open_glue, 'text': open_text_files}
ON_BAD = ('stop', 'skip')


def make_text_source(
    name: str,
    *,
    path: str | None,
    pieces: WordPieces,
    batch_size: int,
    seed: int = 0,
    on_bad: str = 'stop',
    task: str | None = None,
    text_columns: Sequence[str] = (),
    label_column: str = '',
    regression: bool = False,
) -> TextSource:
    """Opens a source of texts by name.

    Args:
        name: a key of `TEXT_SOURCES`.
        path: where the data lies: for `glue` the folder of the original files or TFDS's data_dir, for `text`
            a file or a folder with train and val files.
        pieces: what texts are encoded with, see `pad_jax.data.open_vocabulary`.
        batch_size: examples in a global batch, at least 1.
        seed: in [0, 2⁶⁴), of the order.
        on_bad: what a wrong row does: `stop` raises, `skip` leaves it out and says so. A CSV whose quoting is broken
            raises either way: where it breaks, rows cannot be told apart.
        task: of `glue` only.
        text_columns, label_column, regression: of `text` only.

    Raises:
        BadInput: an argument is out of range or the data is wrong.
    """
    if name not in TEXT_SOURCES:
        raise BadInput(f'data name must be one of {", ".join(TEXT_SOURCES)}, got {name!r}')
    if on_bad not in ON_BAD:
        raise BadInput(f'on_bad must be one of {", ".join(ON_BAD)}, got {on_bad!r}')
    if batch_size < 1:
        raise BadInput(f'batch_size must be at least 1, got {batch_size}')
    if name == 'glue':
        options = {'task': task}
    else:
        options = {'text_columns': text_columns, 'label_column': label_column, 'regression': regression}
    return TEXT_SOURCES[name](
        path=path,
        pieces=pieces,
        batch_size=batch_size,
        seed=check_seed(seed),
        on_bad=on_bad,
        **options,
    )
