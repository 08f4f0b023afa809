"""Attempts: work is done in a folder of its own and published by rename, as often as anyone likes.

An attempt folder mirrors the job's root. Each unit of work (`plan`, a block's key, `finish`) writes only into
`attempts/{unit}/{token}`; when the ledger has committed the token, `publish` moves every file to the same place under
the root. Whoever comes late owns a folder that nobody publishes.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker.types import TilePlan, TileRecord

BLOCKS = "blocks"


def attempt_folder(job_root: Path, unit: str, token: str | int) -> Path:
    """The empty folder of one attempt; what an interrupted start of the same token left is removed.

    Args:
        job_root: the job's folder.
        unit: `plan`, a block's key, or `finish`.
        token: the attempt's fencing token.

    Returns:
        `job_root/attempts/{unit}/{token}`.
    """
    folder = Path(job_root) / "attempts" / unit / str(token)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(job_root: Path, unit: str, token: str | int) -> None:
    """Move a committed attempt into place. May be repeated, and by several at once.

    Args:
        job_root: the job's folder.
        unit: `plan`, a block's key, or `finish`.
        token: the token that the ledger committed.

    Raises:
        FileNotFoundError: there is no such attempt, and none of this unit was published before.
    """
    job_root = Path(job_root)
    folder = job_root / "attempts" / unit / str(token)
    marker = job_root / "published" / unit
    if not folder.exists():
        if marker.exists():
            return
        raise FileNotFoundError(f"unit {unit}: attempt {token} left nothing to publish")
    for source in sorted(_files_in(folder)):
        target = job_root / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another publisher of the same attempt may have moved it a moment ago: then it is where it belongs.
        with suppress(FileNotFoundError):
            source.replace(target)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{token}\n")
    shutil.rmtree(folder, ignore_errors=True)


publish_block = publish


def _files_in(folder: Path) -> list[Path]:
    """Every file below a folder; unlike rglob, `os.walk` passes over what another publisher removes meanwhile."""
    return [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]


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
    """
    for block_key in plan.block_keys:
        path = Path(job_root) / BLOCKS / block_key / "records.jsonl"
        if path.exists():
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    yield TileRecord(**json.loads(line))


def read_summaries(job_root: Path, plan: TilePlan) -> Iterator[tuple[str, dict[str, Any]]]:
    """The (block key, summary) of every published block."""
    for block_key in plan.block_keys:
        path = Path(job_root) / BLOCKS / block_key / "summary.json"
        if path.exists():
            yield block_key, json.loads(path.read_text(encoding="utf-8"))
