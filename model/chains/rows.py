"""Samples as JSON lines: read them with their pictures, append to them safely, move them between folders.

A row stays the dictionary it was read as, so that fields this package knows nothing of survive. Paths in a row are
relative to the file that holds it.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from model.chains.lexicon import mentions
from model.data.concepts import CONCEPTS
from model.data.readers import read_image, read_index

_TEXT = ("id", "image", "query")


class RowError(ValueError):
    """A line that is no sample; the message names file, line and field, and what is accepted."""


@dataclass(frozen=True)
class Row:
    """One sample.

    Attributes:
        data: the line as it was read.
        folder: what its paths are relative to.
    """

    data: dict[str, Any]
    folder: Path

    @property
    def id(self) -> str:
        return self.data["id"]

    @property
    def query(self) -> str:
        return self.data["query"]

    @property
    def chain(self) -> str:
        return self.data.get("chain") or ""

    @property
    def targets(self) -> tuple[str, ...]:
        """Concept keys of the `<SEG>`s, in order; empty when the target is absent."""
        return tuple(self.data.get("targets") or ())

    @property
    def kind(self) -> str | None:
        """`named`, `implied`, `absent`, `unknown` or `exemplar`, where the row says."""
        return self.data.get("kind")

    @property
    def absent(self) -> frozenset[str]:
        """Concept keys known not to be in the picture."""
        return frozenset(self.data.get("absent") or ())

    @property
    def mpp(self) -> float | None:
        return self.data.get("mpp")

    @property
    def provenance(self) -> dict[str, Any]:
        return self.data.get("provenance") or {}

    @cached_property
    def concept(self) -> str | None:
        """What was asked for: the first target, the row's `concept`, or the one that the question names."""
        if self.targets:
            return self.targets[0]
        if self.data.get("concept"):
            return self.data["concept"]
        named = [mention.key for mention in mentions(self.query) if mention.key]
        return named[0] if named and self.kind != "unknown" else None

    @property
    def image_path(self) -> Path:
        return self.folder / self.data["image"]

    def read_image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB.

        Raises:
            ValueError: the file is missing or no picture.
        """
        return read_image(self.image_path)

    def read_masks(self) -> dict[str, np.ndarray]:
        """Concept key → (H, W) bool, those that are not empty.

        Raises:
            ValueError: a file is missing or no mask.
        """
        read = {key: read_index(self.folder / path) > 0 for key, path in (self.data.get("masks") or {}).items()}
        return {key: mask for key, mask in read.items() if mask.any()}

    def moved(self, folder: Path) -> dict[str, Any]:
        """The line as it must read in another folder: names of files made relative to that.

        Raises:
            RowError: a file does not lie in that folder.
        """
        moved = dict(self.data)
        moved["image"] = _moved(self.image_path, folder)
        if self.data.get("masks"):
            moved["masks"] = {key: _moved(self.folder / path, folder) for key, path in self.data["masks"].items()}
        return moved


def _moved(path: Path, folder: Path) -> str:
    """A file's name relative to a folder that holds it, with forward slashes."""
    path, folder = path.resolve(), folder.resolve()
    if not path.is_relative_to(folder):
        raise RowError(
            f"{path.name} does not lie in {folder}; accepted for what is written: the folder of the samples, or one "
            "above it, so that a built set can be moved as a whole"
        )
    return path.relative_to(folder).as_posix()


def read_rows(path: Path) -> list[Row]:
    """All samples of a file in order; of lines with the same id the last one counts, in the first one's place.

    Raises:
        RowError: no such file, no samples, or a line that is not accepted.
    """
    if not path.is_file():
        raise RowError(f"no samples at {path}; a file with one JSON object a line is accepted")
    rows: dict[str, Row] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = Row(_parsed(line, f"{path.name} line {number}"), path.parent)
                rows[row.id] = row
    if not rows:
        raise RowError(f"{path.name} holds no samples; one JSON object a line is accepted")
    return list(rows.values())


def _parsed(line: str, place: str) -> dict[str, Any]:
    """One line as a dictionary whose fields of ours have the right types."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise RowError(f"{place}: {error}; one JSON object a line is accepted") from error
    if not isinstance(data, dict):
        raise RowError(f"{place} is a {type(data).__name__}; a JSON object is accepted")
    for name in _TEXT:
        if not isinstance(data.get(name), str) or not data[name].strip():
            raise RowError(f"{place}: {name} is {data.get(name)!r}; a text that is not empty is accepted")
    if not isinstance(data.get("masks") or {}, dict):
        raise RowError(f"{place}: masks is {data['masks']!r}; an object of concept: file is accepted")
    for name in (data["image"], *(data.get("masks") or {}).values()):
        if not isinstance(name, str) or ".." in (parts := PurePosixPath(name).parts) or parts[:1] == ("/",):
            raise RowError(f"{place}: {name!r} is no file's name relative to the folder of {place.split()[0]}")
    targets = data.get("targets") or []
    unknown = [key for key in targets if key not in (data.get("masks") or {})] if isinstance(targets, list) else targets
    if unknown:
        raise RowError(f"{place}: targets name {unknown!r}; keys of masks are accepted")
    if data.get("concept") is not None and not isinstance(data["concept"], str):
        raise RowError(f"{place}: concept is {data['concept']!r}; a key such as {next(iter(CONCEPTS))!r} is accepted")
    return data


def whole_lines(path: Path, repair: bool = True) -> list[dict[str, Any]]:
    """The lines of a log that were written to their end.

    Args:
        path: may not be there yet.
        repair: cut the torn last line of a killed writer off the file; only for who holds the file `alone`.

    Raises:
        RowError: a line before the last is not JSON: this was no writer of ours.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if repair and len(whole) < len(content):
        os.truncate(path, len(whole))
    lines = []
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        if line.strip():
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise RowError(f"{path.name} line {number}: {error}; one JSON object a line is accepted") from error
    return lines


def append_line(path: Path, data: dict[str, Any]) -> None:
    """Append one line in a single write, on the disk before this returns."""
    line = (json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(file, line)
        if written != len(line):  # a full disk; the torn line is cut off by the next `whole_lines`
            raise OSError(f"{path.name}: only {written} of {len(line)} bytes could be written; is the disk full?")
        os.fsync(file)
    finally:
        os.close(file)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write a whole file by rename, so that a reader never sees half of it.

    Returns:
        How many lines.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    count = 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return count


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep a second process from appending to the same file, as long as this one lives.

    Raises:
        RowError: another one does.
    """
    with out.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RowError(f"{out.name} is being written by another process; one at a time is accepted") from error
        yield
