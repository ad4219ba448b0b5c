"""TFRecord files without TensorFlow: each record's length and bytes, both under a masked CRC-32C.

    length uint64 | masked CRC of length uint32 | data [length] | masked CRC of data uint32, all little-endian

A masked CRC is the CRC rotated right by 15 bits plus a constant, so that the CRC of data that hold CRCs stays good.
"""

import os
import pathlib
import struct
from collections.abc import Iterator

import google_crc32c

from pad_jax.errors import BadInput, quote
from pad_jax.files import open_plain

_HEADER = struct.Struct('<QI')
_FOOTER = struct.Struct('<I')
_MASK_DELTA = 0xA282EAD8


def mask_crc(crc: int) -> int:
    """uint32 -> uint32.

    >>> hex(mask_crc(0)), hex(mask_crc(0x8000))
    ('0xa282ead8', '0xa282ead9')
    """
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def read_records(path: pathlib.Path) -> Iterator[bytes]:
    """The data of every record of a file, in their order, with both of their CRCs checked.

    Raises:
        BadInput: a record is damaged or cut short, with the file and its index, which counts from 0; or the file
            cannot be read.
    """
    try:
        with open_plain(path) as file:
            left, index = os.fstat(file.fileno()).st_size, 0
            while left:
                place = f'record {index} of {quote(path)}'
                header = file.read(_HEADER.size)
                if len(header) < _HEADER.size:
                    raise BadInput(f'{place} is cut short')
                length, length_crc = _HEADER.unpack(header)
                if mask_crc(google_crc32c.value(header[:8])) != length_crc:
                    raise BadInput(f'{place} is damaged: its length does not match its checksum')
                left -= _HEADER.size + length + _FOOTER.size
                # Before the data are read: a length is at most that of the file, whatever it claims.
                if left < 0:
                    raise BadInput(f'{place} is cut short')
                data = file.read(length)
                (data_crc,) = _FOOTER.unpack(file.read(_FOOTER.size))
                if mask_crc(google_crc32c.value(data)) != data_crc:
                    raise BadInput(f'{place} is damaged: its data do not match their checksum')
                yield data
                index += 1
    except OSError as error:
        raise BadInput(f'{quote(path)} cannot be read: {error.strerror}') from error
