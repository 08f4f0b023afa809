"""`slidereason jobs`: looks after jobs, straight on the ledger; neither gateway nor broker is asked. torch-free."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from service.settings import default_data_folder
from worker.errors import BadRequest, SlideReasonError
from worker.ledger import STATUSES, Ledger
from worker.ledger_care import UnitRow
from worker.ledger_rows import JobRow
from worker.ledger_rules import DEATHS_OF_A_TILE

BAD_INPUT, FAILED = 2, 1
PAGE = 500
COLUMNS = ("JOB", "STATUS", "DONE", "TENANT", "PRIORITY", "CREATED", "SLIDE", "MESSAGE")
UNIT_COLUMNS = ("UNIT", "STATE", "TOKEN", "FAULTS", "LOST", "TILES", "OWNER", "QUARANTINED", "ERROR")
LATER = "its workers have it within a sweep (SLIDEREASON_SWEEP_S)"


def run_jobs(argv: Sequence[str]) -> int:
    """`slidereason jobs list|show|retry|dismiss`.

    Returns:
        0; 2 when an option, a job or its state is not accepted, 1 when the database cannot be reached.
    """
    options = _parser().parse_args(argv)
    try:
        ledger = Ledger(_database_url(options), upgrade=False)
        try:
            return options.run(ledger, options)
        finally:
            ledger.close()
    except (SlideReasonError, ArgumentError) as error:
        subject = f"job {error.subject}: " if getattr(error, "subject", None) else ""
        option = f" [--{error.field.replace('_', '-')}]" if getattr(error, "field", None) else ""
        print(f"slidereason jobs: {subject}{error}{option}", file=sys.stderr)
        return BAD_INPUT
    except SQLAlchemyError as error:
        print(f"slidereason jobs: the database cannot be reached: {type(error).__name__}", file=sys.stderr)
        return FAILED


def _database_url(options: argparse.Namespace) -> str:
    """The named database; else the ledger in a data folder, which is never made by looking."""
    url = options.database_url or (None if options.data else os.environ.get("SLIDEREASON_DATABASE_URL"))
    if url:
        return url
    folder = options.data or Path(os.environ.get("SLIDEREASON_DATA") or default_data_folder())
    ledger = folder.expanduser().resolve() / "ledger.sqlite"
    if not ledger.is_file():
        raise BadRequest(
            f"there is no ledger in {folder}; give the folder that `slidereason serve` uses, --database-url, or set "
            "SLIDEREASON_DATABASE_URL",
            field="data",
        )
    return f"sqlite:///{ledger}"


def _list(ledger: Ledger, options: argparse.Namespace) -> int:
    jobs = _newest(ledger, options)
    if options.json:
        _print_json([_job_json(job) for job in jobs])
        return 0
    rows = [
        (
            job.job_id, job.status, f"{job.progress}%", job.tenant, job.spec.priority, _time(job.created),
            job.spec.slide_id, _message(job),
        )
        for job in jobs
    ]  # fmt: skip
    _print_table(COLUMNS, rows)
    return 0


def _newest(ledger: Ledger, options: argparse.Namespace) -> list[JobRow]:
    if options.limit < 1:
        raise BadRequest("limit must be 1 or more", field="limit")
    chosen = {"status": options.status, "slide_id": options.slide, "tenant": options.tenant}
    jobs, cursor = ledger.list_jobs(limit=min(PAGE, options.limit), **chosen)
    while cursor and len(jobs) < options.limit:
        page, cursor = ledger.list_jobs(cursor, min(PAGE, options.limit - len(jobs)), **chosen)
        jobs += page
    return jobs


def _show(ledger: Ledger, options: argparse.Namespace) -> int:
    job = ledger.job(options.job)
    units = ledger.units_of(options.job)
    if options.json:
        _print_json(_job_json(job) | {"units": [asdict(unit) | {"quarantined": _quarantined(unit)} for unit in units]})
        return 0
    for name, value in _facts(job):
        print(f"{name:<10} {value}")
    states = Counter(unit.state for unit in units)
    print(f"{'units':<10} {', '.join(f'{n} {state}' for state, n in sorted(states.items()))}")
    shown = [unit for unit in units if options.units or _stands_out(unit)]
    if shown:
        print()
        _print_table(UNIT_COLUMNS, map(_unit_cells, shown))
    if len(shown) < len(units):
        print(f"\n{len(units) - len(shown)} units that wait or are done without a fault are not shown; --units does")
    return 0


def _facts(job: JobRow) -> Iterable[tuple[str, Any]]:
    card = job.model or {}
    yield "job", job.job_id
    yield "status", f"{job.status}, {job.progress} %"
    yield "message", _message(job) or "-"
    yield "tenant", job.tenant
    yield "slide", job.spec.slide_id
    yield "model", f"{job.spec.model}, revision {card['revision']}" if card.get("revision") else job.spec.model
    yield "priority", job.spec.priority
    for name in ("created", "started", "finished", "updated"):
        yield name, _time(getattr(job, name))
    looked = f"{job.tiles_done} of {job.tiles_total} done, {job.tiles_failed} failed, {job.tiles_skipped} left out"
    yield "tiles", looked


def _retry(ledger: Ledger, options: argparse.Namespace) -> int:
    return _change(ledger.retry, options, lambda job: f"{job.status} again; {LATER}")


def _dismiss(ledger: Ledger, options: argparse.Namespace) -> int:
    return _change(ledger.dismiss, options, lambda job: f"{job.status}{', stopping' if job.open else ''}")


def _change(change: Callable[[str], JobRow], options: argparse.Namespace, told: Callable[[JobRow], str]) -> int:
    """Every job is tried; those that are not accepted are named, and make the exit code 2."""
    code, jobs = 0, []
    for job_id in dict.fromkeys(options.jobs):
        try:
            job = change(job_id)
        except SlideReasonError as error:
            print(f"slidereason jobs: job {job_id}: {error}", file=sys.stderr)
            code = BAD_INPUT
            continue
        jobs.append(job)
        if not options.json:
            print(f"{job_id} {told(job)}")
    if options.json:
        _print_json([_job_json(job) for job in jobs])
    return code


def _stands_out(unit: UnitRow) -> bool:
    """Whether somebody who looks for trouble wants to see it."""
    troubled = unit.faults or unit.lost or unit.isolated or unit.deaths or unit.tiles_failed or unit.error
    return unit.state in ("leased", "failed") or bool(troubled)


def _quarantined(unit: UnitRow) -> list[str]:
    """Keys of the tiles that workers died of."""
    return sorted(tile for tile, deaths in unit.deaths.items() if deaths >= DEATHS_OF_A_TILE)


def _unit_cells(unit: UnitRow) -> tuple[Any, ...]:
    name = f"{unit.kind} {unit.key}".strip() + (" (isolated)" if unit.isolated else "")
    tiles = f"{unit.tiles_done}/{unit.tiles}" + (f", {unit.tiles_failed} failed" if unit.tiles_failed else "")
    quarantined = " ".join(_quarantined(unit))
    return name, unit.state, unit.token, unit.faults, unit.lost, tiles, unit.owner, quarantined, unit.error


def _message(job: JobRow) -> str:
    return f"{job.error_code}: {job.message}" if job.error_code else job.message


def _time(value: datetime | None) -> str:
    return value.strftime("%Y-%m-%d %H:%M:%SZ") if value else "-"


def _job_json(job: JobRow) -> dict[str, Any]:
    """A job without what must not be echoed: the slide's path, and outlines that may be long."""
    plain = (
        "status", "message", "tenant", "progress", "tiles_done", "tiles_total", "tiles_failed", "tiles_skipped",
        "coverage", "units_left", "queue_position", "error_code", "error_field", "model",
    )  # fmt: skip
    times = {name: getattr(job, name) for name in ("created", "started", "finished", "updated")}
    return {
        "jobID": job.job_id,
        **{name: getattr(job, name) for name in plain},
        **{name: value and value.isoformat() for name, value in times.items()},
        "slide": job.spec.slide_id,
        "queries": list(job.spec.queries),
        "priority": job.spec.priority,
        "wanted_model": job.spec.model,
    }


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns as wide as what is in them; a cell is one line, and an empty one a dash."""
    cells = [[" ".join(str(cell).split()) if cell not in (None, "") else "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, *cells):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _parser() -> argparse.ArgumentParser:
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--database-url", help="sqlite:///… or postgresql+psycopg://… (SLIDEREASON_DATABASE_URL)")
    places.add_argument("--data", type=Path, metavar="DIR", help="data folder of `serve` (SLIDEREASON_DATA)")
    places.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(
        prog="slidereason jobs", description="Look after jobs, straight on the ledger.", epilog="Research use only."
    )
    actions = parser.add_subparsers(required=True, metavar="list|show|retry|dismiss")

    lists = actions.add_parser("list", parents=[places], help="jobs, newest first")
    lists.add_argument("--status", choices=STATUSES, help="only these")
    lists.add_argument("--slide", metavar="ID", help="only those about this slide")
    lists.add_argument("--tenant", help="only this tenant's")
    lists.add_argument("--limit", type=int, default=50, help="at most so many (50)")
    lists.set_defaults(run=_list)

    show = actions.add_parser("show", parents=[places], help="one job with its units of work")
    show.add_argument("job", metavar="JOB", help="its id")
    show.add_argument("--units", action="store_true", help="every unit; else those that run, failed or had faults")
    show.set_defaults(run=_show)

    for name, run, told in (
        ("retry", _retry, "run failed or dismissed jobs again; blocks that are through stay"),
        ("dismiss", _dismiss, "stop jobs; those that ended stay as they are"),
    ):
        action = actions.add_parser(name, parents=[places], help=told)
        action.add_argument("jobs", metavar="JOB", nargs="+", help="their ids")
        action.set_defaults(run=run)
    return parser
