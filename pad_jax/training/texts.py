"""The texts of a config: how they become tokens, and where they come from."""

from pathlib import Path

import ml_collections

from pad_jax.data import TextSource, TextSpec, WordPieces, make_text_source, open_vocabulary, shorten
from pad_jax.errors import BadInput
from pad_jax.pretrained import find_vocabulary, find_weights
from pad_jax.training.workdir import find_tokenizer

_NUM_LISTED = 5


def open_pieces(config: ml_collections.ConfigDict, workdir: Path | None = None) -> WordPieces:
    """What texts are encoded with: as the run in workdir began, else by the vocabulary that the config names.

    That is the one that belongs to the pretrained weights unless `data.vocabulary` is another.

    Raises:
      BadInput: when there is none, it can't be read, or it has more pieces than the model embeds.
    """
    kept = find_tokenizer(workdir) if workdir else None
    pieces = open_vocabulary(str(kept or _find_vocabulary(config)), config.data.max_length)
    if pieces.vocab_size > config.model.vocab_size:
        raise BadInput(f'the vocabulary has {pieces.vocab_size} pieces, model.vocab_size is {config.model.vocab_size}')
    return pieces


def _find_vocabulary(config) -> str | Path:
    if config.data.vocabulary:
        return config.data.vocabulary
    if not config.model.pretrained:
        raise BadInput('data.vocabulary must name a vocab.txt or tokenizer.json: model.pretrained names no weights')
    return find_vocabulary(find_weights(config.model.pretrained))


def split_columns(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The names in data.text_columns."""
    return tuple(filter(None, (column.strip() for column in config.data.text_columns.split(','))))


def open_texts(config: ml_collections.ConfigDict, workdir: Path | None = None) -> TextSource:
    """The data of a config of texts, known to fit its model; `workdir` as for `open_pieces`.

    Raises:
      BadInput: on data that can't be read or has another number of classes than the model.
    """
    pieces, data = open_pieces(config, workdir), config.data
    source = make_text_source(
        data.name,
        path=data.path,
        pieces=pieces,
        batch_size=data.batch_size,
        seed=config.train.seed,
        on_bad=data.on_bad,
        task=data.task,
        text_columns=split_columns(config),
        label_column=data.label_column,
        regression=data.regression,
    )
    # The rules have compared a task's number of classes with the model's; of files it is not known before.
    _check_classes(source.spec, config.model.num_classes)
    return source


def _check_classes(spec: TextSpec, num_classes: int) -> None:
    if spec.num_classes == num_classes:
        return
    found = 'numbers for labels' if spec.regression else f'{spec.num_classes} classes{_list_classes(spec)}'
    raise BadInput(
        f'model.num_classes is {num_classes}, the data has {found}: --config.model.num_classes={spec.num_classes}'
    )


def _list_classes(spec: TextSpec) -> str:
    """Those that appear last come first: a misspelt label is rare."""
    seen = [f'{shorten(name)!r} first in {where}' for name, where in reversed(spec.first_seen)]
    more = f', and {len(seen) - _NUM_LISTED} more' if len(seen) > _NUM_LISTED else ''
    return f' ({", ".join(seen[:_NUM_LISTED])}{more})' if seen else ''
