"""The slides a client may name: files of the configured folders, registered references, uploads, what is fetched."""

import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from service.elsewhere import Elsewhere
from service.fetch_folder import Fetch
from service.references import resolve_reference
from service.settings import Settings
from service.sources import file_of, is_elsewhere, name_of
from worker.errors import BadRequest, MppUnknown, QueueFull, SlideFetchFailed, SlideFetching, SlideNotFound
from worker.ledger import Ledger
from worker.outlines import Polygons, read_mask_picture
from worker.slide_process import inspect_slide
from worker.types import SlideInfo
from worker.zarr_head import is_picture

SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .vms .vmu .scn .mrxs .bif .svslide .dcm .ozx .png .jpg .jpeg .webp .bmp".split()
)
MAX_DEPTH = 8
MAX_LISTED = 100_000
SCAN_EVERY_S = 5.0


@dataclass(frozen=True)
class SlideEntry:
    """One slide of the catalogue.

    Attributes:
        slide_id: opaque. path: resolved; never leaves the service.
        origin: `folder`, `reference` or `upload`. name: what a client called it. info: None until somebody opened it.
        elsewhere, fetch: of a slide that lies elsewhere its reference, which is shown to nobody, and how its fetch
            stands.
    """

    slide_id: str
    path: Path
    origin: str
    name: str | None
    info: SlideInfo | None
    elsewhere: str | None = field(default=None, repr=False)
    fetch: Fetch | None = None


class Catalogue:
    """Ids ↔ paths, kept in the ledger; slides are opened in child processes only."""

    def __init__(self, ledger: Ledger, settings: Settings):
        self.ledger = ledger
        self.settings = settings
        self.roots: Sequence[Path] = settings.slides
        self.uploads = settings.data / "uploads"
        self.elsewhere = Elsewhere(ledger, settings, self.inspect, self._know)
        self._slots = threading.BoundedSemaphore(settings.slide_checks)
        self._lock = threading.Lock()
        self._scanned = float("-inf")
        self._known: dict[tuple[str, int, int], SlideInfo] = {}

    def register(self, reference: str, name: str | None = None) -> tuple[SlideEntry, bool]:
        """Give the slide of a reference an id; returns the entry and whether it is new.

        One that lies elsewhere is fetched in the background, also where that failed before: see the entry's `fetch`.

        Raises:
            SlideForbidden, SlideNotFound, SlideUnreadable, BadRequest: as `resolve_reference`, or it is no slide.
        """
        if is_elsewhere(reference):
            return self.look(self.elsewhere.ask(reference, name, again=True)), False
        path = resolve_reference(reference, self.roots)
        info = self.inspect(path)
        with self._lock:
            slide_id = self._ids().get(str(path))
            if slide_id and not name:
                return self._entry(slide_id), False
            created = slide_id is None
            slide_id = slide_id or secrets.token_hex(16)
            self._save(slide_id, path, "reference", name, info)
        return self._entry(slide_id), created

    def add_upload(self, slide_id: str, path: Path, name: str | None = None) -> SlideEntry:
        """Register an uploaded file that has been checked."""
        self._save(slide_id, path, "upload", name, self.inspect(path))
        return self._entry(slide_id)

    def find(self, slide: str) -> SlideEntry:
        """The slide that a job names, by id or by reference; a reference is registered on the way.

        Raises:
            SlideNotFound, SlideForbidden, SlideUnreadable, BadRequest: it names no slide here.
            SlideFetching, SlideFetchFailed: it lies elsewhere and is not here yet; a fetch is on its way, or failed.
        """
        if is_slide_id(slide):
            entry = self._entry(slide)
            if entry.fetch is not None and entry.fetch.state != "here":
                self.elsewhere.ask(entry.elsewhere)
            return self.entry(slide)
        if is_elsewhere(slide):
            return self.entry(self.elsewhere.ask(slide))
        return self.register(slide)[0]

    def entry(self, slide_id: str) -> SlideEntry:
        """The slide with this id, still there and still under a root.

        Raises:
            SlideNotFound: no such id, or its file has gone (or its folder is not configured any more).
            SlideFetching, SlideFetchFailed: it lies elsewhere and is not here yet.
        """
        return self._present(self._entry(slide_id, asked=True))

    def look(self, slide_id: str) -> SlideEntry:
        """The slide with this id, opened; one that lies elsewhere and is not here as it is.

        Raises:
            SlideNotFound, SlideUnreadable, QueueFull: as `entry` and `inspect`.
        """
        entry = self._entry(slide_id, asked=True)
        away = entry.fetch is not None and entry.fetch.state != "here"
        return entry if away else self.details(self._present(entry))

    def _present(self, entry: SlideEntry) -> SlideEntry:
        if entry.fetch is not None and entry.fetch.state != "here":
            raise entry.fetch.refusal(entry.slide_id)
        roots = (*self.roots, self.uploads.resolve(), self.elsewhere.folder.path)
        try:
            if resolve_reference(str(entry.path), roots) == entry.path:
                return entry
        except (SlideNotFound, PermissionError, BadRequest):
            pass
        raise SlideNotFound("this slide is not there any more; GET /v1/slides lists what is", field="slide")

    def details(self, entry: SlideEntry) -> SlideEntry:
        """The same entry, opened."""
        info = self.inspect(entry.path)
        if info != entry.info:
            self._save(entry.slide_id, entry.elsewhere or entry.path, entry.origin, entry.name, info)
        return replace(entry, info=info)

    def inspect(self, path: Path) -> SlideInfo:
        """What the slide says of itself, read in a child process; remembered until the file changes.

        Raises:
            SlideUnreadable: no reader opens it within the limits of time and memory.
            QueueFull: too many slides are being opened.
        """
        mark = self._fingerprint(path)
        info = self._known.get(mark)
        if info is None:
            with self._slot() as limits:
                info = inspect_slide(path, **limits)
            if len(self._known) >= 10_000:
                self._known.clear()
            self._known[mark] = info
        return info

    def outline(self, mask: str, slide: SlideInfo, field: str) -> Polygons:
        """What a mask picture marks on a slide; the picture is named as slides are.

        Raises:
            SlideNotFound, SlideForbidden, SlideUnreadable, BadRequest: it names no picture here, or none of this size.
            QueueFull: too many slides are being opened.
        """
        path = self.entry(mask).path if is_slide_id(mask) else resolve_reference(mask, self.roots)
        with self._slot() as limits:
            return read_mask_picture(path, slide, field, self.settings.max_roi_vertices, **limits)

    @contextmanager
    def _slot(self) -> Iterator[dict[str, Any]]:
        """Hold one of the slots in which files are opened; gives the limits of the child that does it."""
        if not self._slots.acquire(timeout=self.settings.slide_timeout_s):
            raise QueueFull("too many slides are being opened; try again later", field="slide")
        try:
            yield {"timeout_s": self.settings.slide_timeout_s, "memory_bytes": self.settings.slide_memory_bytes}
        finally:
            self._slots.release()

    def require_mpp(self, info: SlideInfo, mpp_override: float | None) -> None:
        """Refuse a slide of unknown resolution before a job is made of it.

        Raises:
            MppUnknown: neither the slide nor the request says its µm/px.
        """
        if mpp_override is None and (not info.mpp_x or not info.mpp_y):
            raise MppUnknown(
                "the slide does not say its resolution; give mpp_override in µm per level-0 pixel "
                "(often 0.25 at 40×, 0.5 at 20×)",
                field="mpp_override",
            )

    def page(self, cursor: str | None, limit: int) -> tuple[list[SlideEntry], str | None]:
        """A page of the catalogue in the order of ids, and the cursor of the next page.

        Raises:
            BadRequest: it is not a cursor of this list.
        """
        if cursor is not None and not is_slide_id(cursor):
            raise BadRequest("cursor must be one that a page of this list returned", field="cursor")
        self._scan()
        found: list[SlideEntry] = []
        for row in self.ledger.slides():
            if cursor is not None and row.slide_id <= cursor:
                continue
            if len(found) == limit:
                return found, found[-1].slide_id
            try:
                found.append(self._present(self._entry(row.slide_id)))
            except SlideFetching:
                found.append(self._entry(row.slide_id))
            except (SlideNotFound, SlideFetchFailed):
                continue
        return found, None

    def _scan(self) -> None:
        """Give every file of the folders that looks like a slide an id; walks them at most every few seconds."""
        with self._lock:
            if time.monotonic() - self._scanned < SCAN_EVERY_S:
                return
            self._scanned = time.monotonic()
            known = self._ids()
            for path in _slides_under(self.roots):
                if str(path) not in known:
                    self._save(secrets.token_hex(16), path, "folder", None, None)

    def _ids(self) -> dict[str, str]:
        return {row.reference: row.slide_id for row in self.ledger.slides()}

    def _save(self, slide_id: str, path: Path | str, origin: str, name: str | None, info: SlideInfo | None) -> None:
        details = {"origin": origin, "name": name, "info": asdict(info) if info else None}
        self.ledger.register_slide(slide_id, str(path), details)

    def _entry(self, slide_id: str, asked: bool = False) -> SlideEntry:
        try:
            row = self.ledger.slide(slide_id)
        except SlideNotFound:
            raise SlideNotFound("no slide has this id; GET /v1/slides lists what there is", field="slide") from None
        info = row.details.get("info")
        name = row.details.get("name")
        info, origin = _info(info) if info else None, row.details.get("origin", "reference")
        if is_elsewhere(row.reference):
            if asked:
                self.elsewhere.folder.touch(slide_id)
            fetch = self.elsewhere.folder.look(slide_id)
            path = fetch.path or self.elsewhere.folder.path / slide_id / file_of(row.reference)
            if name is None and self.settings.slide_names:
                name = name_of(row.reference)
            return SlideEntry(slide_id, path, origin, name, info, row.reference, fetch)
        path = Path(row.reference)
        if name is None and self.settings.slide_names:
            name = path.name
        return SlideEntry(slide_id, path, origin, name, info)

    def _know(self, path: Path, info: SlideInfo) -> None:
        """What was found out of a slide before it came to lie there."""
        self._known[self._fingerprint(path)] = info

    @staticmethod
    def _fingerprint(path: Path) -> tuple[str, int, int]:
        try:
            stat = path.stat()
        except OSError:
            raise SlideNotFound(
                "this slide is not there any more; GET /v1/slides lists what is", field="slide"
            ) from None
        return str(path), stat.st_mtime_ns, stat.st_size


def is_slide_id(text: str) -> bool:
    """Whether a text has the form of our ids, 32 hexadecimal digits (no reference under a root needs to)."""
    return len(text) == 32 and all(letter in "0123456789abcdef" for letter in text)


def _info(data: dict) -> SlideInfo:
    """SlideInfo from the ledger's JSON, lists turned back into tuples."""
    names = {field.name for field in fields(SlideInfo)}
    data = {name: value for name, value in data.items() if name in names}
    data["level_dimensions"] = tuple(tuple(size) for size in data["level_dimensions"])
    data["level_downsamples"] = tuple(data["level_downsamples"])
    if data.get("bounds_px0"):
        data["bounds_px0"] = tuple(data["bounds_px0"])
    return SlideInfo(**data)


def _slides_under(roots: Sequence[Path]) -> Iterator[Path]:
    """Paths that look like slides, in a stable order; links are not followed; a DICOM or OME-Zarr folder is one."""
    count = 0
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            here = Path(folder)
            depth = len(here.parts) - len(root.parts)
            zarrs = [here / name for name in sorted(subfolders) if name.lower().endswith(".zarr")]
            yield from (path for path in zarrs if not path.is_symlink() and is_picture(path))
            subfolders[:] = sorted(name for name in subfolders if _may_hold_slides(name)) if depth < MAX_DEPTH else []
            names = sorted(name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES)
            dicom = [name for name in names if name.lower().endswith(".dcm")]
            if dicom and here != root:
                names = [name for name in names if name not in dicom]
                yield here
            for name in names:
                path = here / name
                count += 1
                if count > MAX_LISTED:
                    return
                if path.is_file() and not path.is_symlink():
                    yield path


def _may_hold_slides(folder: str) -> bool:
    """Whether a folder of this name is looked into; a Zarr's thousands of chunks are no slides."""
    return not folder.startswith(".") and not folder.lower().endswith(".zarr")
