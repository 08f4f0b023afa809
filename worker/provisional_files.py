"""Where a block's provisional regions lie, and how they are read; without any of the code that draws them."""

from worker.artifacts import JobReader
from worker.attempts import ATTEMPTS, BLOCKS, PUBLISHED
from worker.ledger_done import DoneBlock

FILE_NAME = "provisional.jsonl"


def read_provisional(reader: JobReader, block: DoneBlock) -> list[bytes] | None:
    """The provisional regions of a block that is done, each a GeoJSON feature on one line.

    A block is committed before it is published, so for a moment its file is where the attempt wrote it.

    Args:
        reader: of the job's files.
        block: as the ledger has it.

    Returns:
        The features; None when they cannot be read yet: they are being moved into place, or will be later.

    Raises:
        StorageAway: the artifacts cannot be read now.
    """
    if not block.regions:
        return []
    for _ in range(2):
        if _published_token(reader, block.key) >= block.token:
            return (_read(reader, f"{BLOCKS}/{block.key}/{FILE_NAME}") or b"").splitlines()
        found = _read(reader, f"{ATTEMPTS}/{block.key}/{block.token}/{BLOCKS}/{block.key}/{FILE_NAME}")
        if found is not None:
            return found.splitlines()
    return None


def _published_token(reader: JobReader, block_key: str) -> int:
    try:
        return int(_read(reader, f"{PUBLISHED}/{block_key}") or 0)
    except ValueError:
        return 0


def _read(reader: JobReader, key: str) -> bytes | None:
    try:
        return b"".join(reader.chunks(key))
    except FileNotFoundError:
        return None
