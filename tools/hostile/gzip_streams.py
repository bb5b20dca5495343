"""Gzip streams as no good program writes them, and some that one might."""

import gzip
import random
import struct
import zlib
from functools import lru_cache

_MAGIC = b"\x1f\x8b\x08"
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT = 2, 4, 8, 16  # flags of RFC 1952
_MEMBER_BYTES = 64 * 2**20


def pack(generator: random.Random, content: bytes, broken: bool) -> bytes:
    """The content as one or several members with any optional fields; then, if ``broken``, damaged."""
    cut = generator.randrange(len(content) + 1) if generator.random() < 0.1 else len(content)
    members = [_member(generator, content[:cut])]
    if cut < len(content):
        members.append(_member(generator, content[cut:]))
    stream = b"".join(members)
    return _damage(generator, stream) if broken else stream


def bomb(content: bytes, zeros: int) -> bytes:
    """A sound stream of the content, the first bytes of whose voxels are followed by ``zeros`` more.

    Members of 64 MiB, 65 kB packed: 4 GiB take 4 MB.
    """
    whole, rest = divmod(zeros, _MEMBER_BYTES)
    return gzip.compress(content, 1, mtime=0) + _zeros(_MEMBER_BYTES) * whole + gzip.compress(bytes(rest), 1, mtime=0)


@lru_cache(maxsize=1)
def _zeros(count: int) -> bytes:
    return gzip.compress(bytes(count), 9, mtime=0)


def _member(generator: random.Random, content: bytes) -> bytes:
    flags = generator.choice((0, 0, 0, 1, _FEXTRA, _FNAME, _FCOMMENT, _FHCRC, _FEXTRA | _FNAME | _FCOMMENT | _FHCRC))
    head = _MAGIC + bytes((flags,)) + generator.randbytes(6)
    if flags & _FEXTRA:
        extra = generator.randbytes(generator.randrange(300))
        head += struct.pack("<H", len(extra)) + extra
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            head += generator.randbytes(generator.randrange(300)).replace(b"\0", b"") + b"\0"
    if flags & _FHCRC:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    strategy = generator.choice((zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE))
    packer = zlib.compressobj(generator.choice((0, 1, 9)), zlib.DEFLATED, -zlib.MAX_WBITS, 8, strategy)
    body = packer.compress(content)
    if generator.random() < 0.2:
        body += packer.flush(generator.choice((zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH)))
    body += packer.flush()
    return head + body + struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)


def _damage(generator: random.Random, stream: bytes) -> bytes:
    kind = generator.randrange(8)
    altered = bytearray(stream)
    if kind == 0:
        return stream[: generator.randrange(len(stream) + 1)]
    if kind == 1:
        return stream + generator.choice((bytes(8), b"garbage", stream[: generator.randrange(len(stream))], _MAGIC))
    if kind == 2:  # check sum or length
        altered[-generator.randint(1, 8)] ^= 1 << generator.randrange(8)
    elif kind == 3:  # method, flags
        altered[generator.randint(2, 3)] = generator.randrange(256)
    elif kind == 4:  # the deflate blocks
        for _ in range(generator.randint(1, 4)):
            altered[generator.randrange(10, len(altered))] = generator.randrange(256)
    elif kind == 5:  # a block of the type that does not exist, or one that is not the last
        altered[10] = generator.choice((0x07, 0x06, 0x00, 0x01, 0x02, 0x04))
    elif kind == 6:
        start = generator.randrange(len(altered))
        del altered[start : start + generator.randint(1, 20)]
    else:
        return _member(generator, b"") * generator.randint(1, 2000) + stream
    return bytes(altered)
