"""Attempts: work is done in a folder of its own and published by rename, as often as anyone likes.

An attempt folder mirrors the job's root. Each unit of work (`plan`, a block's key, `finish`) writes only into
`attempts/{unit}/{token}`; `save` makes that survive a power cut; when the ledger has committed the token, `publish`
moves every file to the same place under the root. Whoever comes late owns a folder that nobody publishes.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from worker.errors import NewerArtifacts
from worker.types import TilePlan, TileRecord

BLOCKS = "blocks"
ATTEMPTS = "attempts"
PUBLISHED = "published"
FORMAT = 1
"""Of tile records, whose lines say no other. A field that is new needs no new one: readers pass over what they do not
know. Lines that mean something else carry a higher `format`, which is refused."""

FIELDS = frozenset(field.name for field in fields(TileRecord))
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""What file systems answer that cannot flush a folder by itself (some network shares); they do it with the files."""


def attempt_folder(job_root: Path, unit: str, token: int) -> Path:
    """The empty folder of one attempt; what an interrupted start of the same token left is removed.

    Args:
        job_root: the job's folder.
        unit: `plan`, a block's key, or `finish`.
        token: the attempt's fencing token.

    Returns:
        `job_root/attempts/{unit}/{token}`.
    """
    folder = Path(job_root) / ATTEMPTS / unit / str(token)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def save(job_root: Path, unit: str, token: int) -> None:
    """Bring an attempt's files and the folders that name them to the disk, so that a power cut leaves them whole.

    Args:
        job_root, unit, token: as `attempt_folder`.

    Raises:
        OSError: the disk refuses; the attempt must not be committed.
    """
    folder = Path(job_root) / ATTEMPTS / unit / str(token)
    files = files_in(folder)
    for file in files:
        _sync(file)
    sync_folders(files, Path(job_root))


def publish(job_root: Path, unit: str, token: int, durable: bool = False) -> None:
    """Move a committed attempt into place. May be repeated, and by several at once.

    Args:
        job_root: the job's folder.
        unit: `plan`, a block's key, or `finish`.
        token: the token that the ledger committed.
        durable: return only when a power cut can no longer undo it.

    Raises:
        FileNotFoundError: there is no such attempt, and none of this unit was published before.
    """
    job_root = Path(job_root)
    folder = job_root / ATTEMPTS / unit / str(token)
    if published_token(job_root, unit) >= token:
        shutil.rmtree(folder, ignore_errors=True)  # what a publisher left who died after he was through
        return
    if not folder.exists():
        if published_token(job_root, unit) >= token:  # by another, since we looked
            return
        raise FileNotFoundError(f"unit {unit}: attempt {token} left nothing to publish")
    moved = []
    for source in sorted(files_in(folder)):
        target = job_root / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another publisher of the same attempt may have moved it a moment ago: then it is where it belongs.
        with suppress(FileNotFoundError):
            source.replace(target)
        moved.append(target)
    if durable:
        sync_folders(moved, job_root)
    _mark(job_root, unit, token, durable)
    shutil.rmtree(folder, ignore_errors=True)


def published_token(job_root: Path, unit: str) -> int:
    """The token under which a unit was published, 0 when it was not."""
    try:
        return int((Path(job_root) / PUBLISHED / unit).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder; unlike rglob, `os.walk` passes over what another publisher removes meanwhile."""
    return [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]


def sync_folders(files: Iterable[Path], top: Path) -> None:
    """Bring to the disk the names of these files: every folder from theirs up to `top` and the one it lies in."""
    folders = {parent for file in files for parent in file.parents if parent.is_relative_to(top)}
    for folder in sorted(folders | {top.parent}, reverse=True):
        try:
            _sync(folder)
        except OSError as error:
            if error.errno not in NO_SYNC:
                raise


def _mark(job_root: Path, unit: str, token: int, durable: bool) -> None:
    """Write the mark by rename: whoever reads it sees a whole token."""
    marker = job_root / PUBLISHED / unit
    marker.parent.mkdir(parents=True, exist_ok=True)
    whole = marker.with_name(f".{unit}-{uuid.uuid4().hex}")
    whole.write_text(f"{token}\n")
    if durable:
        _sync(whole)
    whole.replace(marker)
    if durable:
        sync_folders([marker], job_root)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_records(folder: Path, block_key: str, records: Iterable[TileRecord]) -> None:
    """Write what a block remembers of its tiles: one JSON line each, ordered by query and tile.

    Args:
        folder: the attempt's folder.
        block_key: the block.
        records: of all queries, in any order.
    """
    ordered = sorted(records, key=lambda record: (record.query_index, *map(int, record.key.split("_"))))
    target = folder / BLOCKS / block_key / "records.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8") as lines:
        for record in ordered:
            lines.write(json.dumps(asdict(record), ensure_ascii=False, sort_keys=True) + "\n")


def write_summary(folder: Path, block_key: str, summary: Mapping[str, Any]) -> None:
    """Write a block's summary as JSON; keep times out of it, so that repeated work leaves equal bytes."""
    target = folder / BLOCKS / block_key / "summary.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(dict(summary), ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def read_records(job_root: Path, plan: TilePlan) -> Iterator[TileRecord]:
    """The records of every published block, block by block, without holding them all.

    Args:
        job_root: the job's folder.
        plan: names the blocks.

    Yields:
        Records; a tile that several blocks saw comes once from each, `owned` by one of them.

    Raises:
        NewerArtifacts: they are of a format that only a newer version reads.
    """
    for block_key in plan.block_keys:
        path = Path(job_root) / BLOCKS / block_key / "records.jsonl"
        if path.exists():
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    yield read_record(line, block_key)


def read_record(line: str, block_key: str) -> TileRecord:
    """The record on one line; what a newer version adds to it is passed over.

    Raises:
        NewerArtifacts: its format is newer than `FORMAT`; `block_key` says where.
    """
    said = json.loads(line)
    found = said.get("format", FORMAT)
    if found > FORMAT:
        raise NewerArtifacts(
            f"tile records of block {block_key} are of format {found} and this version of SlideReason reads {FORMAT}: "
            "a newer worker goes on",
            subject=block_key,
        )
    return TileRecord(**{name: value for name, value in said.items() if name in FIELDS})


def read_summaries(job_root: Path, plan: TilePlan) -> Iterator[tuple[str, dict[str, Any]]]:
    """The (block key, summary) of every published block."""
    for block_key in plan.block_keys:
        path = Path(job_root) / BLOCKS / block_key / "summary.json"
        if path.exists():
            yield block_key, json.loads(path.read_text(encoding="utf-8"))
