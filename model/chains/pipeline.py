"""Samples in, chains out: written, checked, corrected, and safe against being killed at any time.

    rows ──▶ measure ──▶ writer ──▶ checks ──▶ OUT.jsonl            one line a sample, good chains only
                          ▲  └ problems told back ┘  └▶ OUT.attempts.jsonl   everything that was written, and failures

A sample is done once its line is in OUT; the line is one write, on the disk before the next sample counts. Started
again, the pipeline cuts off a torn last line, skips what is done and goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.chains.checks import NAMES, truth_of
from model.chains.rows import Row, RowError, alone, append_line, now, whole_lines
from model.chains.writers import TemplateWriter, Writer, Written
from model.data.sample import pixel_hash

UNREVIEWED = {"state": "unreviewed", "reviewer": None, "time": None}


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        skipped: samples that were done before.
        written: chains of the writer.
        fallen_back: chains of the template where the writer failed.
        failed: samples without a good chain.
    """

    skipped: int
    written: int
    fallen_back: int
    failed: int


@dataclass(frozen=True)
class Plan:
    """How to make chains.

    Attributes:
        writer: who writes.
        fallback: writes where `writer` fails; None marks the sample failed.
        concurrency: samples under way at once.
        retry_failed: try again what failed in an earlier run.
    """

    writer: Writer
    fallback: TemplateWriter | None = None
    concurrency: int = 1
    retry_failed: bool = False


def attempts_path(out: Path) -> Path:
    """The log beside an output: every text that was written, with what was wrong with it."""
    return out.with_name(f"{out.stem}.attempts.jsonl")


def make_chains(
    rows: Sequence[Row], out: Path, plan: Plan, limit: int | None = None, show: Callable[[int, int], None] | None = None
) -> Outcome:
    """Write the chains of all rows that have none in `out` yet.

    Args:
        rows: samples, at least one; `out` must lie in their folder or one above.
        out: appended to.
        plan: how.
        limit: how many to write at most; None writes all.
        show: told (done, total) after each.

    Raises:
        RowError: another run writes to `out`, or a row or file is not accepted.
        EndpointRefused, EndpointUnavailable: what was done until then is kept.
    """
    rows[0].moved(out.parent)  # refused before anything is written or asked
    out.parent.mkdir(parents=True, exist_ok=True)
    with alone(out):
        done = {line["id"] for line in whole_lines(out)}
        failed = {line["id"] for line in whole_lines(attempts_path(out)) if line["state"] == "failed"}
        skip = done if plan.retry_failed else done | failed
        todo = [row for row in rows if row.id not in skip][:limit]
        counts = {"written": 0, "fallen_back": 0, "failed": 0}
        for number, (row, made) in enumerate(_write_all(todo, plan), 1):
            counts[_store(row, made, out)] += 1
            if show is not None:
                show(number, len(todo))
    return Outcome(sum(row.id in skip for row in rows), **counts)


@dataclass(frozen=True)
class _Made:
    """One sample's chain: the one that counts (None: failed), and what the writer made of it before any fallback."""

    good: Written | None
    first: Written
    image_sha256: str


def _write_all(rows: Sequence[Row], plan: Plan) -> Iterator[tuple[Row, _Made]]:
    """Each row with its chain as they are finished; no more than `concurrency` are under way, or lost when killed."""
    if plan.concurrency == 1:
        yield from ((row, _make(row, plan)) for row in rows)
        return
    waiting = iter(rows)
    failure: BaseException | None = None
    with ThreadPoolExecutor(plan.concurrency) as pool:
        under_way: dict[Future[_Made], Row] = {}
        while True:
            while failure is None and len(under_way) < plan.concurrency and (row := next(waiting, None)) is not None:
                under_way[pool.submit(_make, row, plan)] = row
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                row = under_way.pop(future)
                if future.exception() is None:
                    yield row, future.result()
                else:
                    failure = failure or future.exception()
    if failure is not None:  # raised last, so that an error of one sample loses no other
        raise failure


def _make(row: Row, plan: Plan) -> _Made:
    """Measure and write one sample."""
    truth = truth_of(row)
    sha256 = pixel_hash(row.read_image())
    stated = row.provenance.get("image_sha256")
    if stated not in (None, sha256):
        raise RowError(f"{row.id}: {row.data['image']} is not the picture that the sample was built with (SHA-256)")
    first = plan.writer.write(row, truth)
    good = first if not first.problems else None
    if good is None and plan.fallback is not None:
        second = plan.fallback.write(row, truth)
        good = second if not second.problems else None
    return _Made(good, first, sha256)


def _store(row: Row, made: _Made, out: Path) -> str:
    """Log the attempts, then append the line.

    Returns:
        `written`, `fallen_back` or `failed`.
    """
    state = "failed" if made.good is None else "written" if made.good is made.first else "fallen_back"
    if state != "written" or made.first.generator != "template":
        first = made.first
        append_line(attempts_path(out), {
            "id": row.id, "state": state, "time": now(), "generator": first.generator, "versions": dict(first.versions),
            "seed": first.seed, "description": first.description, "attempts": list(first.attempts),
        })  # fmt: skip
    if made.good is not None:
        append_line(out, _line(row, made.good, made.image_sha256, out.parent))
    return state


def _line(row: Row, good: Written, image_sha256: str, folder: Path) -> dict[str, Any]:
    """The sample with its new chain and where that comes from; fields that are not the chain's stay as they were."""
    provenance = dict(row.provenance)
    provenance.setdefault("reader", "unknown")
    provenance |= {
        "generator": good.generator, "versions": {**provenance.get("versions", {}), **good.versions},
        "seed": good.seed, "checks": list(NAMES), "image_sha256": image_sha256, "review": dict(UNREVIEWED),
    }  # fmt: skip
    return row.moved(folder) | {"chain": good.chain, "provenance": provenance}
