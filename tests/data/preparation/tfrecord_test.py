import pytest

from pad_jax.data.preparation.tfrecord import mask_crc, read_records
from pad_jax.errors import BadInput
from tests.data.preparation import tfrecord_twin as twin

PAYLOADS = [b'', b'one', bytes(range(40))]


def test_the_twin_is_crc_32c():
    # The check value of the catalogues, and 32 zeros of RFC 3720, appendix B.4.
    assert twin.crc32c(b'123456789') == 0xE3069283
    assert twin.crc32c(bytes(32)) == 0x8A9136AA


def test_masking_rotates_and_adds():
    # 0xE3069283 rotated right by 15 bits is 0x2507C60D, and + 0xA282EAD8 is 0xC78AB0E5.
    assert mask_crc(0xE3069283) == 0xC78AB0E5
    assert twin.masked(b'123456789') == bytes.fromhex('e5b08ac7')


def test_reads_what_tensorflow_writes(tmp_path):
    twin.write_tfrecord(tmp_path / 'file', PAYLOADS)
    assert list(read_records(tmp_path / 'file')) == PAYLOADS
    (tmp_path / 'file').write_bytes(b'')
    assert list(read_records(tmp_path / 'file')) == []


def test_finds_every_byte_that_changed_in_its_record(tmp_path):
    path = tmp_path / 'file'
    frames = [twin.frame(payload) for payload in PAYLOADS]
    content = b''.join(frames)
    places = [index for index, frame in enumerate(frames) for _ in frame]
    for place, index in enumerate(places):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(BadInput, match=rf"^record {index} of '.*file' is damaged: its (length|data) do"):
            list(read_records(path))


def test_finds_every_cut_but_one_between_records(tmp_path):
    path = tmp_path / 'file'
    frames = [twin.frame(payload) for payload in PAYLOADS]
    content = b''.join(frames)
    ends = [len(b''.join(frames[:count])) for count in range(len(frames))]
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size in ends:
            assert list(read_records(path)) == PAYLOADS[: ends.index(size)]
        else:
            index = sum(end < size for end in ends) - 1
            with pytest.raises(BadInput, match=rf"^record {index} of '.*file' is cut short$"):
                list(read_records(path))


def test_a_length_beyond_the_file_is_not_read(tmp_path):
    length = (2**62).to_bytes(8, 'little')
    (tmp_path / 'file').write_bytes(length + twin.masked(length) + b'data')
    with pytest.raises(BadInput, match=r'record 0 of .* is cut short'):
        list(read_records(tmp_path / 'file'))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BadInput, match="none' cannot be read: No such file or directory"):
        list(read_records(tmp_path / 'none'))
