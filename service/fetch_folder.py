"""The folder of slides that were fetched from elsewhere, and what stands in it about those that are coming.

A slide has up to three entries there. They are all the state there is, so that gateways which share the folder see the
same, and one that was killed leaves nothing to repair:

    {slide_id}/                what was fetched, whole; its time is when somebody asked for it last
    .{slide_id}.{owner}.part/  what is coming, of the one owner whose it is
    .{slide_id}.note           who fetches it, rewritten every few seconds, or why that failed

A note whose owner was silent for `STALE_S` is anybody's to take.
"""

import hashlib
import hmac
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worker.errors import SlideFetchFailed, SlideFetching, SlideNotFound, SlideReasonError

STALE_S = 30.0
TOUCH_S = 3600.0
"""How exactly it is known when a slide was asked for last."""

RETRY_S = (1, 15)
State = Literal["fetching", "failed", "here", "away"]


@dataclass(frozen=True)
class Fetch:
    """How the fetch of a slide stands.

    Attributes:
        state: `away` is neither here nor on its way: it was removed for want of use, or its gateway was lost.
        path: of the slide, once it is here. detail: why it failed.
        bytes_done, bytes_total: so far, and in the end where somebody said. age_s: since that was written down.
        retry_after_s: when to ask again, while it comes.
    """

    state: State
    path: Path | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    detail: str | None = None
    age_s: float = 0.0
    retry_after_s: int = 2

    def refusal(self, slide_id: str) -> SlideReasonError:
        """What whoever needs the slide now is told."""
        if self.state == "fetching":
            detail = f"the slide is being fetched; ask again in {self.retry_after_s} s"
            return SlideFetching(detail, retry_after_s=self.retry_after_s, field="slide", subject=slide_id)
        if self.state == "failed":
            detail = f"the slide could not be fetched: {self.detail}; POST /v1/slides tries again"
            return SlideFetchFailed(detail, field="slide", subject=slide_id)
        detail = "this slide is not here now; a job on it, or POST /v1/slides with its reference, fetches it"
        return SlideNotFound(detail, field="slide")


class FetchFolder:
    """Reads and writes that folder.

    Args:
        path: of the folder; made when it is needed.
    """

    def __init__(self, path: Path):
        self.path = path

    def id_of(self, reference: str) -> str:
        """The id of a slide that lies elsewhere: always the same, and nobody can tell the reference from it."""
        return hmac.new(self._key(), reference.encode(), hashlib.sha256).hexdigest()[:32]

    def look(self, slide_id: str) -> Fetch:
        """How a slide stands now."""
        path = self.slide(slide_id)
        if path is not None:
            return Fetch("here", path)
        note, age_s = self._read(slide_id)
        if note is None:
            path = self.slide(slide_id)  # it may have come between the two looks
            return Fetch("away") if path is None else Fetch("here", path)
        done, total = note.get("done", 0), note.get("total")
        if "failed" in note:
            return Fetch("failed", None, done, total, note["failed"], age_s)
        if age_s > STALE_S:
            return Fetch("away")
        return Fetch("fetching", None, done, total, None, age_s, _retry_after_s(note))

    def slide(self, slide_id: str) -> Path | None:
        """What was fetched: the only entry of its folder."""
        try:
            return next((self.path / slide_id).iterdir(), None)
        except OSError:
            return None

    def touch(self, slide_id: str) -> None:
        """Remember that somebody asked for a slide; to be called before it is looked for, see `_remove`."""
        path = self.path / slide_id
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > TOUCH_S:
                os.utime(path)

    # ---- whose it is ---------------------------------------------------------------------------------------------

    def take(self, slide_id: str, owner: str) -> bool:
        """Become the owner of a slide that nobody fetches; of several who try one succeeds."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        note, age_s = self._read(slide_id)
        if note is not None:
            if "failed" not in note and age_s <= STALE_S:
                return False
            self._take_away(slide_id, note)
        try:
            with self._note(slide_id).open("x") as file:
                file.write(json.dumps({"owner": owner}))
        except FileExistsError:
            return False
        return True

    def write(self, slide_id: str, owner: str, **more: Any) -> bool:
        """Say how an owner's fetch stands: `began` (seconds since 1970), `done`, `total` (bytes) and at last `failed`.

        Returns:
            Whether it is still theirs; if not, nothing is written.
        """
        if not self.owned(slide_id, owner):
            return False
        path = self._note(slide_id)
        fresh = path.with_name(f"{path.name}.{owner}")
        fresh.write_text(json.dumps({"owner": owner, **more}))
        fresh.replace(path)
        return True

    def owned(self, slide_id: str, owner: str) -> bool:
        """Whether this owner fetches it."""
        note, _ = self._read(slide_id)
        return note is not None and note.get("owner") == owner

    def let_go(self, slide_id: str, owner: str) -> None:
        """Nobody fetches it any more, and there is nothing to say of it."""
        if self.owned(slide_id, owner):
            self._note(slide_id).unlink(missing_ok=True)

    def part(self, slide_id: str, owner: str) -> Path:
        """Where an owner puts what comes. Hidden, so that no catalogue lists it."""
        return self.path / f".{slide_id}.{owner}.part"

    def show(self, slide_id: str, owner: str) -> Path:
        """Make what came visible, all at once; returns where it is. Raises OSError where another's is already."""
        shown = self.path / slide_id
        self.part(slide_id, owner).rename(shown)
        os.utime(shown)
        return shown

    # ---- what is not needed --------------------------------------------------------------------------------------

    def tidy(self, keep_s: float, in_use: Callable[[], set[str]]) -> None:
        """Remove what lost gateways left, and slides that nobody asked for in `keep_s` and nobody uses.

        Args:
            keep_s: seconds.
            in_use: ids of the slides that stay; asked only where there is one to remove.
        """
        now, old = time.time(), []
        for path in list(self.path.iterdir()):
            with suppress(OSError):
                age_s = now - path.stat().st_mtime
                slide_id, _, rest = path.name.removeprefix(".").partition(".")
                if rest.endswith(".part"):
                    self._drop_part(path, slide_id, rest.removesuffix(".part"))
                elif rest.startswith("note") and age_s > keep_s:
                    path.unlink()
                elif not path.name.startswith(".") and age_s > keep_s:
                    old.append(path)
        if old:
            used = in_use()
            for path in old:
                if path.name not in used:
                    self._remove(path, keep_s)

    def _drop_part(self, path: Path, slide_id: str, owner: str) -> None:
        note, age_s = self._read(slide_id)
        if note is None or note.get("owner", owner) != owner or age_s > STALE_S:
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path, keep_s: float) -> None:
        """Hidden first: who asks for the slide after that finds it gone, and who did before has touched it."""
        hidden = self.part(path.name, secrets.token_hex(8))
        with suppress(OSError):
            path.rename(hidden)
            if time.time() - hidden.stat().st_mtime < keep_s:
                hidden.rename(path)
            else:
                shutil.rmtree(hidden, ignore_errors=True)

    # ---- files ---------------------------------------------------------------------------------------------------

    def _note(self, slide_id: str) -> Path:
        return self.path / f".{slide_id}.note"

    def _read(self, slide_id: str) -> tuple[dict[str, Any] | None, float]:
        """A note and seconds since it was written; None where there is none, and an empty one while it is made."""
        path = self._note(slide_id)
        try:
            age_s = max(0.0, time.time() - path.stat().st_mtime)
            return json.loads(path.read_text()), age_s
        except FileNotFoundError:
            return None, 0.0
        except ValueError:
            return {}, age_s

    def _take_away(self, slide_id: str, seen: dict[str, Any]) -> None:
        """Remove the note that was seen, and not one that another gateway has put in its place since."""
        away = self._note(slide_id).with_name(f".{slide_id}.note.{secrets.token_hex(8)}")
        with suppress(FileNotFoundError):
            self._note(slide_id).rename(away)
            with suppress(ValueError):
                if json.loads(away.read_text()).get("owner") != seen.get("owner"):
                    away.rename(self._note(slide_id))
            away.unlink(missing_ok=True)

    def _key(self) -> bytes:
        """What ids are made with; of several gateways that begin at once the first one's counts."""
        path = self.path / ".key"
        if not path.exists():
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            drawn = path.with_name(f".key.{secrets.token_hex(8)}")
            drawn.write_text(secrets.token_hex(32))
            with suppress(FileExistsError):
                os.link(drawn, path)
            drawn.unlink()
        return path.read_bytes()


def _retry_after_s(note: dict[str, Any]) -> int:
    """Half of what it will take at this pace."""
    done, total, began = note.get("done"), note.get("total"), note.get("began")
    if not done or not total or not began:
        return 2
    left_s = (total - done) * (time.time() - began) / done
    return int(min(max(left_s / 2, RETRY_S[0]), RETRY_S[1]))
