"""The review queue: what a pathologist decided about each chain, kept in a log that survives being killed.

A decision is one line of `*.review.jsonl`, on the disk before it is answered; of lines about one sample the last one
counts. Undoing appends as well, so the log tells the whole story.
"""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.chains.checks import BLOCKING, NAMES, Problem, Truth, check_chain, truth_of
from model.chains.rows import Row, RowError, append_line, now, whole_lines

STATES = ("accepted", "edited", "rejected")
FILTERS = ("unreviewed", "flagged", "all")
_KEPT = 48
"""Measured samples kept in memory."""


class ReviewError(ValueError):
    """A decision that is not accepted; the message says why."""


@dataclass(frozen=True)
class Decision:
    """What became of one chain.

    Attributes:
        state: `accepted`, `edited`, `rejected` or, taken back, `unreviewed`.
        chain: the text that counts.
        reviewer, time, note: who, when (ISO 8601), and why, in their own words.
        stale: the chain was written anew since, so the decision no longer counts.
    """

    state: str = "unreviewed"
    chain: str = ""
    reviewer: str | None = None
    time: str | None = None
    note: str = ""
    stale: bool = False


def review_path(path: Path) -> Path:
    """Where decisions about a file of samples are kept: beside it."""
    return path.with_name(f"{path.stem}.review.jsonl")


def with_chains(rows: Sequence[Row], chains: Sequence[Row]) -> list[Row]:
    """The samples with the chain and provenance that another file holds for them; samples it lacks keep theirs."""
    written = {row.id: row for row in chains}
    merged = []
    for row in rows:
        newer = written.get(row.id)
        changed = {key: newer.data[key] for key in ("chain", "provenance") if key in newer.data} if newer else {}
        merged.append(Row(row.data | changed, row.folder))
    return merged


class Reviews:
    """Samples under review, and every decision about them.

    Args:
        rows: the samples.
        log: the file of decisions; read now, appended to by `decide` and `undo`.
        reviewer: who decides.
        repair: cut a torn last line off the log, see `whole_lines`.
    """

    def __init__(self, rows: Sequence[Row], log: Path, reviewer: str, repair: bool = True):
        self.rows = {row.id: row for row in rows}
        self._log, self._reviewer = log, reviewer
        self._lock = threading.Lock()
        self._lines: dict[str, list[dict[str, Any]]] = {}
        self._order: list[str] = []
        for line in whole_lines(log, repair):
            self._take(line)
        self.truth = lru_cache(_KEPT)(self._truth)

    def _truth(self, row_id: str) -> Truth:
        return truth_of(self.rows[row_id])

    def _take(self, line: dict[str, Any]) -> None:
        """One line of the log into memory."""
        if not {"id", "state", "chain", "of"} <= line.keys():
            raise RowError(f"{self._log.name}: a line is no decision; id, state, chain, of are due")
        if line.get("undo"):
            if not self._lines.get(line["id"]):
                raise RowError(f"{self._log.name}: takes back a decision about {line['id']!r} that it does not hold")
            self._lines[line["id"]].pop()
            del self._order[len(self._order) - 1 - self._order[::-1].index(line["id"])]
        else:
            self._lines.setdefault(line["id"], []).append(line)
            self._order.append(line["id"])

    def decision(self, row_id: str) -> Decision:
        """The last decision about a sample, from the log or else from the sample itself."""
        row, lines = self.rows[row_id], self._lines.get(row_id)
        if lines:
            last = lines[-1]
            if last["of"] == _hash(row.chain):
                told = {name: last.get(name) for name in ("reviewer", "time")}
                return Decision(last["state"], last["chain"], **told, note=last.get("note") or "")
            return Decision(chain=row.chain, stale=True)
        told = row.provenance.get("review") or {}
        return Decision(told.get("state", "unreviewed"), row.chain, told.get("reviewer"), told.get("time"))

    def problems(self, row_id: str, chain: str | None = None) -> list[Problem]:
        """What the automatic checks find in a text, or in the one that counts."""
        return check_chain(self.decision(row_id).chain if chain is None else chain, self.truth(row_id))

    def decide(self, row_id: str, state: str, chain: str | None = None, note: str = "") -> Decision:
        """Record a decision.

        Args:
            row_id: the sample.
            state: one of `STATES`.
            chain: the new text of an edited one.
            note: in the reviewer's words.

        Raises:
            ReviewError: no such state; an edit without a text; a text that training could not read, such as one with
                the wrong number of `<SEG>`.
        """
        if state not in STATES:
            raise ReviewError(f"state is {state!r}; accepted: {', '.join(STATES)}")
        row = self.rows[row_id]
        if state == "edited":
            chain = " ".join((chain or "").split())
            if not chain:
                raise ReviewError("an edit needs the text of the chain")
        elif chain is not None:
            raise ReviewError(f"a chain comes with state 'edited' only, not with {state!r}")
        else:
            chain = self.decision(row_id).chain
            state = "edited" if state == "accepted" and chain != row.chain else state
        problems = [] if state == "rejected" else self.problems(row_id, chain)
        blocking = [problem.message for problem in problems if problem.code in BLOCKING]
        if blocking:
            raise ReviewError(f"not {state}: {'; '.join(blocking)}")
        with self._lock:
            self._append({
                "id": row_id, "state": state, "chain": chain, "of": _hash(row.chain), "reviewer": self._reviewer,
                "time": now(), "note": note.strip(), "problems": [problem.code for problem in problems],
            })  # fmt: skip
        return self.decision(row_id)

    def undo(self) -> str | None:
        """Take the last decision back that was not taken back yet.

        Returns:
            Whose it was; None when there is none.
        """
        with self._lock:
            known = [row_id for row_id in self._order if row_id in self.rows]
            if not known:
                return None
            last = self._lines[known[-1]][-1]
            self._append(
                {key: last[key] for key in ("id", "state", "chain", "of")}
                | {"undo": True, "reviewer": self._reviewer, "time": now()}
            )
            return known[-1]

    def _append(self, line: dict[str, Any]) -> None:
        """To the disk first, then to memory."""
        append_line(self._log, line)
        self._take(line)

    def progress(self, ids: Sequence[str]) -> dict[str, int]:
        """How many of some samples are in each state, and how many there are."""
        counts = dict.fromkeys(("unreviewed", *STATES), 0)
        for row_id in ids:
            counts[self.decision(row_id).state] += 1
        return counts | {"total": len(ids)}

    def queue(
        self, which: str = "unreviewed", sample: int | None = None, seed: int = 0,
        show: Callable[[int], None] | None = None,
    ) -> list[str]:  # fmt: skip
        """What there is to look at, in the order of the file.

        Args:
            which: `unreviewed`; `flagged`, in which the checks find something; `all`.
            sample: so many of these by chance; None takes all.
            seed: of that chance.
            show: told how many were looked at, as measuring takes its time.
        """
        ids = list(self.rows)
        wanted = ids if sample is None else random.Random(seed).sample(ids, len(ids))
        chosen: set[str] = set()
        for number, row_id in enumerate(wanted, 1):
            if sample is not None and len(chosen) == sample:
                break
            if self._is_wanted(row_id, which):
                chosen.add(row_id)
            if show is not None:
                show(number)
        return [row_id for row_id in ids if row_id in chosen]

    def _is_wanted(self, row_id: str, which: str) -> bool:
        if which == "flagged":
            return bool(self.problems(row_id))
        return which == "all" or self.decision(row_id).state == "unreviewed"

    def exported(self, folder: Path, keep_rejected: bool = False) -> Iterator[dict[str, Any]]:
        """The reviewed samples as lines for a file in `folder`, each with what was decided.

        Args:
            folder: where the lines will lie; holds their pictures, or a folder below it does.
            keep_rejected: rejected ones too.
        """
        for row_id, row in self.rows.items():
            decision = self.decision(row_id)
            if decision.state == "unreviewed" or decision.state == "rejected" and not keep_rejected:
                continue
            failing = {problem.code for problem in self.problems(row_id)}
            review = {"state": decision.state, "reviewer": decision.reviewer, "time": decision.time}
            checks = [name for name in NAMES if name not in failing]
            provenance = row.provenance | {"checks": checks, "review": review}
            yield row.moved(folder) | {"chain": decision.chain, "provenance": provenance}


def _hash(chain: str) -> str:
    """Which text a decision was about."""
    return hashlib.sha256(chain.encode("utf-8")).hexdigest()[:16]
