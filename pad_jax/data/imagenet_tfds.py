"""ImageNet as TFDS prepares it in array_record, or another set with the same features, read without TensorFlow."""

import bisect
import itertools
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pad_jax.data.records import BrokenSet, Record
from pad_jax.data.tfds_folders import ARRAY_RECORD, find_readable_set, find_set, read_info
from pad_jax.errors import BadInput, quote

NAME = 'imagenet2012'
SPLITS = ('train', 'validation')
NUM_THREADS = 16


def find_prepared(root: pathlib.Path) -> pathlib.Path | None:
    """The newest version of a set: `root`/imagenet2012/VERSION, `root`/VERSION or `root` itself; None without one.

    Raises:
        BadInput: it was prepared as TFRecord or the like, of which no single record can be read.
    """
    root = root.absolute()
    found = find_set(root, NAME) or find_set(root.parent, root.name)
    if found is None:
        return None
    # DATA_DIR/NAME/VERSION, or DATA_DIR/NAME/CONFIG/VERSION.
    data_dir = found.parents[2 if read_info(found).get('configName') else 1]
    return find_readable_set(data_dir, str(found.relative_to(data_dir)))


class PreparedSplit:
    """The records of one split of a prepared folder."""

    def __init__(self, source: Sequence, shards: Sequence[pathlib.Path], lengths: Sequence[int], num_classes: int):
        self._source, self._shards, self._num_classes = source, shards, num_classes
        self._ends = list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Record:
        shard = bisect.bisect_right(self._ends, index)
        within = index - (self._ends[shard - 1] if shard else 0)
        place = f'record {within} of {quote(self._shards[shard])}'
        try:
            row = self._source[index]
            data, label, name = row['image'], int(row['label']), row.get('file_name', b'').decode('utf-8')
        except Exception as error:  # A damaged shard fails in many ways, each of them a RuntimeError or a KeyError.
            raise BadInput(f'cannot read {place}: {" ".join(str(error).split()) or type(error).__name__}') from error
        if not 0 <= label < self._num_classes:
            expected = f'expected 0 to {self._num_classes - 1}'
            raise BrokenSet(f'{place} has the label {label}, {expected}: prepare the set again')
        return Record(data, label, f'{name!r} ({place})' if name else f'of {place}')


def open_splits(folder: pathlib.Path) -> tuple[tuple[str, ...], PreparedSplit, PreparedSplit]:
    """The class names, the training and the evaluation split of a prepared folder.

    Raises:
        BadInput: it lacks a split, a feature or a shard, has more or fewer class names than classes, or a shard holds
            another number of records than it should.
    """
    # Imported here: it takes a second, which nobody who reads other files should wait for.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        features, splits = builder.info.features, builder.info.splits
        missing = [f'feature {name}' for name in ('image', 'label') if name not in features]
        missing += [f'split {name}' for name in SPLITS if name not in splits]
    except Exception as error:
        # A description that was changed or cut short fails in many ways, none of them this program's fault.
        raise _unreadable(folder, error) from error
    if missing:
        raise BadInput(f'{quote(folder)} has no {" and no ".join(missing)}')
    names, opened = _check_names(folder, features['label']), []
    for name in SPLITS:
        try:
            lengths = list(splits[name].shard_lengths)
            files = splits[name].filename_template.replace(filetype_suffix=ARRAY_RECORD)
            shards = [pathlib.Path(path) for path in files.sharded_filepaths(len(lengths))]
        except Exception as error:
            raise _unreadable(folder, error) from error
        _check_shards(shards, lengths)
        try:
            source = builder.as_data_source(split=name, decoders={'image': tfds.decode.SkipDecoding()})
        except Exception as error:
            raise _unreadable(folder, error) from error
        opened.append(PreparedSplit(source, shards, lengths, len(names)))
    return names, *opened


def _check_names(folder: pathlib.Path, label) -> tuple[str, ...]:
    number = getattr(label, 'num_classes', None)
    if not number:
        raise BadInput(f'the feature label of {quote(folder)} has no classes')
    if len(label.names) != number:
        raise BadInput(f'{quote(folder)} names {len(label.names)} classes, expected {number}: prepare the set again')
    return tuple(label.names)


def _check_shards(shards: Sequence[pathlib.Path], lengths: Sequence[int]) -> None:
    """Raises `BadInput` unless every shard is whole: what it holds stands at its end."""
    from array_record.python.array_record_module import ArrayRecordReader

    def count(shard: pathlib.Path) -> int:
        try:
            reader = ArrayRecordReader(str(shard))
            try:
                return reader.num_records()
            finally:
                reader.close()
        except Exception as error:
            raise _unreadable(shard, error) from error

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for shard, length, found in zip(shards, lengths, pool.map(count, shards), strict=True):
            if found != length:
                raise BadInput(f'{quote(shard)} holds {found} records, expected {length}: prepare the set again')


def _unreadable(path: pathlib.Path, error: Exception) -> BadInput:
    return BadInput(f'cannot read {quote(path)}: {" ".join(str(error).split()) or type(error).__name__}')
