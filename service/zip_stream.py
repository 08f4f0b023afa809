"""A folder as one stored zip, streamed: sizes and checksums first, so that its length is known before it is sent."""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from worker.artifacts import JobReader

HELD_BYTES = 8 << 20
"""A file up to this size is read once and held while its checksum is made; a larger one is read twice."""

LIMIT_32 = 0xFFFFFFFF
LIMIT_16 = 0xFFFF
UTF8 = 0x800
DOS_DATE = (0 << 9) | (1 << 5) | 1  # 1980-01-01: no timestamps, so that the same store makes the same zip


@dataclass(frozen=True)
class Member:
    """One file of the zip: its name inside, its size in bytes, a tag of its content, and its bytes in pieces."""

    name: str
    size: int
    etag: str
    read: Callable[[], Iterator[bytes]]


def members_of(reader: JobReader, folder: str) -> list[Member]:
    """Every file of a job's folder; metadata first and shallow first, so that readers find them early."""
    found = [
        Member(key.removeprefix(f"{folder}/"), size, etag, partial(reader.chunks, key))
        for key, size, etag in reader.list(folder)
    ]
    return sorted(found, key=lambda each: (each.name.split("/")[-1] != "zarr.json", each.name.count("/"), each.name))


def zip_length(members: Sequence[Member], limit: int = LIMIT_32) -> int:
    """Bytes of the whole zip."""
    offset, directory = 0, 0
    for member in members:
        name = len(member.name.encode())
        directory += len(_directory_entry(member, 0, offset, limit))
        offset += 30 + name + (20 if member.size >= limit else 0) + member.size
    return offset + directory + len(_end(len(members), directory, offset, limit))


def stream_zip(members: Sequence[Member], limit: int = LIMIT_32) -> Iterator[bytes]:
    """The bytes of the zip, in pieces of about a megabyte.

    Args:
        members: in the order they are to have.
        limit: from which sizes and offsets are written in zip64 form; only tests change it.

    Yields:
        Consecutive bytes, `zip_length(members)` in all.

    Raises:
        OSError: a file has changed or gone since it was listed, or the storage is away (the connection then breaks
            off: a short zip must not look whole).

    Source: PKWARE APPNOTE 6.3.9, §4.3.
    """
    offset, directory = 0, bytearray()
    for member in members:
        held = list(_content(member)) if member.size <= HELD_BYTES else None
        checksum = _checksum(held if held is not None else _content(member))
        header = _local_header(member, checksum, limit)
        directory += _directory_entry(member, checksum, offset, limit)
        yield header
        yield from held if held is not None else _content(member)
        offset += len(header) + member.size
    yield bytes(directory) + _end(len(members), len(directory), offset, limit)


def _checksum(pieces: Iterable[bytes]) -> int:
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _content(member: Member) -> Iterator[bytes]:
    left = member.size
    for piece in member.read() if left else ():
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise OSError(f"{member.name} became {'longer' if left < 0 else 'shorter'} while it was sent")


def _local_header(member: Member, checksum: int, limit: int) -> bytes:
    large = member.size >= limit
    size = LIMIT_32 if large else member.size
    extra = struct.pack("<HHQQ", 1, 16, member.size, member.size) if large else b""
    name = member.name.encode()
    fields = (45 if large else 20, UTF8, 0, 0, DOS_DATE, checksum, size, size, len(name), len(extra))
    return b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", *fields) + name + extra


def _directory_entry(member: Member, checksum: int, offset: int, limit: int) -> bytes:
    large, far = member.size >= limit, offset >= limit
    numbers = [member.size, member.size] * large + [offset] * far
    extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
    size = LIMIT_32 if large else member.size
    version = 45 if numbers else 20
    name = member.name.encode()
    # made by Unix (3), so that the permission bits count
    fields = (3 << 8 | version, version, UTF8, 0, 0, DOS_DATE, checksum, size, size, len(name), len(extra), 0, 0, 0)
    place = (0o100644 << 16, LIMIT_32 if far else offset)
    return b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHH", *fields) + struct.pack("<II", *place) + name + extra


def _end(count: int, directory_bytes: int, offset: int, limit: int) -> bytes:
    end = b""
    if count >= min(LIMIT_16, limit) or directory_bytes >= limit or offset >= limit:
        fields = (44, 45, 45, 0, 0, count, count, directory_bytes, offset)
        end += b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", *fields)
        end += b"PK\x06\x07" + struct.pack("<IQI", 0, offset + directory_bytes, 1)
    short = (0, 0, min(count, LIMIT_16), min(count, LIMIT_16))
    end += b"PK\x05\x06" + struct.pack("<HHHH", *short)
    return end + struct.pack("<IIH", min(directory_bytes, LIMIT_32), LIMIT_32 if offset >= limit else offset, 0)
