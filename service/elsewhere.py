"""Slides that lie elsewhere: given an id by their reference, fetched in the background, kept while they are used."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from sqlalchemy.exc import IntegrityError

from service.fetch_folder import FetchFolder
from service.fetches import Fetches
from service.settings import Settings
from worker.errors import QueueFull, SlideNotFound
from worker.ledger import Ledger
from worker.types import SlideInfo

TURNS = 10
"""So often what was fetched waits for its turn to be opened; nobody waits for an answer meanwhile."""


class Elsewhere:
    """What may be fetched, and what was.

    Args:
        ledger: knows the references by their ids.
        settings: say where from, how much, and for how long.
        inspect: opens a slide in a child process.
        known: is told what `inspect` found, with the path under which the slide is then shown.

    Attributes:
        folder: what was fetched.
    """

    def __init__(
        self, ledger: Ledger, settings: Settings, inspect: Callable[[Path], SlideInfo],
        known: Callable[[Path, SlideInfo], None],
    ):  # fmt: skip
        self.folder = FetchFolder((settings.data / "fetched").resolve())
        self._ledger, self._inspect, self._known = ledger, inspect, known
        self._sources = settings.sources
        self._fetches = Fetches(
            self.folder,
            most=settings.fetches,
            limit_bytes=settings.max_fetch_bytes or settings.max_upload_bytes,
            stall_s=settings.fetch_stall_s,
            keep_s=settings.fetched_days * 86400,
            in_use=self._in_use,
        )

    def ask(self, reference: str, name: str | None = None, again: bool = False) -> str:
        """Have a slide fetched unless it is here; returns its id.

        Args:
            reference: of a slide that lies elsewhere.
            name: to show in lists; None leaves the one there is.
            again: also when its fetch has just failed.

        Raises:
            BadRequest: the operator does not allow it.
            QueueFull: too many wait to be fetched.
        """
        reference = self._sources.read(reference)
        slide_id = self.folder.id_of(reference)
        self._remember(slide_id, reference, name)
        self._fetches.ask(slide_id, partial(self._sources.fetch, reference), self._keep, again)
        return slide_id

    def close(self) -> None:
        """End what goes on."""
        self._fetches.close()

    def _remember(self, slide_id: str, reference: str, name: str | None) -> None:
        try:
            details = self._ledger.slide(slide_id).details
        except SlideNotFound:
            details = {}
        if not details or (name is not None and name != details.get("name")):
            details = {"origin": "reference", "info": None, "name": None} | details | ({"name": name} if name else {})
            try:
                self._ledger.register_slide(slide_id, reference, details)
            except IntegrityError:  # another gateway was faster
                self._ledger.register_slide(slide_id, reference, details)

    def _keep(self, path: Path) -> Callable[[Path], None]:
        """Refuse what was fetched and is no slide."""
        for turn in range(TURNS):
            try:
                info = self._inspect(path)
                break
            except QueueFull:
                if turn == TURNS - 1:
                    raise
        return lambda shown: self._known(shown, info)

    def _in_use(self) -> set[str]:
        """Slides that open jobs read."""
        used: set[str] = set()
        for status in ("accepted", "running"):  # in this order a job that moves on meanwhile is seen at least once
            cursor: str | None = None
            first = True
            while first or cursor is not None:
                jobs, cursor = self._ledger.list_jobs(cursor, 500, status)
                first = False
                for job in jobs:
                    used |= {job.spec.slide_id} | ({job.spec.exemplar.slide_id} if job.spec.exemplar else set())
        return used
