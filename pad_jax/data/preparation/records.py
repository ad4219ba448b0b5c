"""Serialised examples in array_record: files, and whole splits in the order in which TFDS lays them out."""

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pad_jax.data.prefetch import Prefetch
from pad_jax.data.preparation.progress import CountProgress
from pad_jax.errors import BadInput, quote

OPTIONS = 'group_size:1'
"""As TFDS: one record in a group is what can be read in any order."""
NUM_THREADS = 8
# Records read at once: so many may wait on a disk or a network file system, and no more lie in memory thrice.
CHUNK = 64


class Serializer:
    """Makes the bytes that TFDS stores of an example.

    Args:
        features: of the builder of the set.
    """

    def __init__(self, features):
        from tensorflow_datasets.core import example_serializer

        self._features = features
        self._serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def __call__(self, example: dict) -> bytes:
        return self._serializer.serialize_example(self._features.encode_example(example))


def write_file(path: pathlib.Path, payloads: Iterable[bytes]) -> tuple[int, int]:
    """Writes one array_record file.

    Returns:
        How many payloads there were, and their bytes.

    Raises:
        BadInput: the file cannot be written, as on a disk that is full.
    """
    from array_record.python import array_record_module

    count, num_bytes = 0, 0
    with _explain(path):
        writer = array_record_module.ArrayRecordWriter(str(path), OPTIONS)
    try:
        for payload in payloads:
            with _explain(path):
                writer.write(payload)
            count += 1
            num_bytes += len(payload)
    except BaseException:
        with contextlib.suppress(RuntimeError):
            writer.close()
        raise
    with _explain(path):
        writer.close()
    return count, num_bytes


@contextlib.contextmanager
def _explain(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that the library raises: its text says 'No space left on device'
        raise BadInput(f'{quote(path)} cannot be written: {error}') from error


def write_split(
    folder: pathlib.Path,
    name: str,
    split: str,
    keys: Sequence[str | int],
    read: Callable[[int], bytes],
    expected_bytes: int,
):
    """Writes the files of one split into `folder`, as many and in the same order as TFDS would.

    TFDS sorts the examples by the MD5 of the split's name and the key. Where the keys are known before the examples,
    as they are here, that order can be written at once, and only the keys need memory.

    Args:
        name: of the set.
        keys: of all examples, each once.
        read: the serialised example by its number in `keys`; called in that order by several threads.
        expected_bytes: of all examples together, which says how many files there shall be.

    Returns:
        The `tfds.core.SplitInfo`.

    Raises:
        BadInput: two keys are the same; there are none; a file cannot be written; and what `read` raises.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import hashing, naming
    from tensorflow_datasets.core.utils import shard_utils

    if not keys:
        raise BadInput(f'split {split} of {name} has no examples')
    hasher = hashing.Hasher(split)
    hashes = [hasher.hash_key(key) for key in keys]
    order = sorted(range(len(keys)), key=hashes.__getitem__)
    for one, other in itertools.pairwise(order):
        if hashes[one] == hashes[other]:
            raise BadInput(f'split {split} of {name} has {keys[one]!r} more than once')
    del hashes

    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix='array_record'
    )
    num_files = shard_utils.ShardConfig().get_number_shards(expected_bytes, len(keys))
    ends = shard_utils.get_shard_boundaries(len(keys), num_files)
    lengths, num_bytes = [], 0
    with CountProgress(f'writing {split}', len(keys), 'examples') as progress, _read_ahead(read, order) as payloads:
        for number, end in enumerate(ends):
            path = pathlib.Path(template.sharded_filepath(shard_index=number, num_shards=num_files))
            wanted = end - sum(lengths)
            length, size = write_file(path, _take(payloads, wanted, progress))
            lengths.append(length)
            num_bytes += size
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)


@contextlib.contextmanager
def _read_ahead(read: Callable[[int], bytes], order: Sequence[int]) -> Iterator[Iterator[bytes]]:
    num_chunks = -(-len(order) // CHUNK)
    with ThreadPoolExecutor(NUM_THREADS) as pool:

        def read_chunk(number: int) -> list[bytes]:
            return list(pool.map(read, order[number * CHUNK : (number + 1) * CHUNK]))

        with Prefetch(read_chunk, 0, num_chunks) as chunks:
            yield (payload for _, chunk in chunks for payload in chunk)


def _take(payloads: Iterator[bytes], count: int, progress: CountProgress) -> Iterator[bytes]:
    for _ in range(count):
        yield next(payloads)
        progress.advance()


def write_info(folder: pathlib.Path, builder, splits: Sequence) -> None:
    """Writes what says that `folder` is a set of the builder: features.json, label names, dataset_info.json.

    Args:
        builder: of TFDS, made with `file_format='array_record'` for a set that is not there.
        splits: one `tfds.core.SplitInfo` each.
    """
    import tensorflow_datasets as tfds

    builder.info.set_splits(tfds.core.splits.SplitDict(splits))
    builder.info.write_to_directory(folder)
