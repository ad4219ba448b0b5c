"""TFRecord files as TensorFlow writes them, from a CRC that goes bit by bit."""

import struct


def crc32c(data):
    """Castagnoli's, reflected: the polynomial 0x1EDC6F41 read backwards."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def frame(data):
    length = struct.pack('<Q', len(data))
    return length + masked(length) + data + masked(data)


def write_tfrecord(path, payloads):
    path.write_bytes(b''.join(map(frame, payloads)))
