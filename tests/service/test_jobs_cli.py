"""`slidereason jobs` over a real ledger: what it lists, shows, tries again and stops, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from service.cli import main
from tests.worker.test_ledger import INFO, PLAN, TILES
from worker.errors import CoverageTooLow, TileFailed
from worker.ledger import Ledger
from worker.ledger_schema import units
from worker.types import JobSpec

SPEC = JobSpec("/secret/place/a.svs", "slide-a", ("Where is the tumour?",), model="hue")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.delenv("SLIDEREASON_DATABASE_URL", raising=False)
    monkeypatch.setenv("SLIDEREASON_DATA", str(tmp_path))
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield ledger
    ledger.close()


def claim(ledger: Ledger):
    return ledger.claim("host-1", ["hue"])


def failed_job(ledger: Ledger) -> str:
    """A job that failed: one of its blocks could not be read."""
    job_id, _ = ledger.create_job(SPEC)
    ledger.commit_plan(claim(ledger), PLAN, INFO, TILES)
    ledger.fail(claim(ledger), TileFailed("the slide is broken here"), data_fault=True, final=True)
    while (work := claim(ledger)).kind == "segment":
        ledger.commit_block(work, TILES[work.key], 0, {})
    ledger.fail(work, CoverageTooLow("too little was looked at"), data_fault=True, final=True)
    return job_id


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["jobs", *arguments])
    return code, *capsys.readouterr()


def test_list_is_newest_first_and_filtered(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = ledger.create_job(SPEC)
    second, _ = ledger.create_job(replace(SPEC, slide_id="slide-b", priority=3), tenant="north")
    ledger.dismiss(first)
    code, out, _ = run(capsys, "list")
    header, *rows = out.splitlines()
    assert code == 0 and header.split()[:4] == ["JOB", "STATUS", "DONE", "TENANT"]
    assert [row.split()[0] for row in rows] == [second, first]
    assert rows[0].split()[1:5] == ["accepted", "0%", "north", "3"]
    for chosen, found in (
        (("--status", "dismissed"), first),
        (("--tenant", "north"), second),
        (("--slide", "slide-b"), second),
        (("--limit", "1"), second),
    ):
        (row,) = run(capsys, "list", *chosen)[1].splitlines()[1:]
        assert row.startswith(found), chosen


def test_more_jobs_than_a_page_of_the_ledger_are_listed(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs_cli.PAGE", 2)
    made = [ledger.create_job(SPEC)[0] for _ in range(5)]
    found = json.loads(run(capsys, "list", "--json")[1])
    assert [job["jobID"] for job in found] == made[::-1]
    assert len(json.loads(run(capsys, "list", "--json", "--limit", "3")[1])) == 3


def test_show_tells_what_went_wrong_in_which_unit(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = failed_job(ledger)
    with ledger.engine.begin() as connection:
        about = (units.c.job_id == job_id) & (units.c.state == "failed") & (units.c.kind == "segment")
        connection.execute(update(units).where(about).values(deaths={"3_4": 2, "3_5": 1}, lost=2, isolated=True))
    code, out, _ = run(capsys, "show", job_id)
    assert code == 0 and "/secret" not in out
    assert "coverage-too-low: too little was looked at" in out
    (row,) = [line for line in out.splitlines() if line.startswith("segment")]
    assert "(isolated)" in row and " 3_4 " in row and "3_5" not in row and "the slide is broken here" in row
    assert f"{len(TILES)} units that wait or are done" in out, "the plan, and the other blocks"
    assert run(capsys, "show", job_id, "--units")[1].count("\nsegment") == len(TILES)


def test_json_has_every_unit_and_no_path(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = failed_job(ledger)
    out = run(capsys, "show", job_id, "--json")[1]
    job = json.loads(out)
    assert "/secret" not in out
    assert (job["jobID"], job["status"], job["error_code"]) == (job_id, "failed", "coverage-too-low")
    assert [unit["kind"] for unit in job["units"]] == ["plan", *["segment"] * len(TILES), "finish"]
    assert {"token", "faults", "lost", "deaths", "quarantined", "error"} <= job["units"][0].keys()


def test_retry_runs_a_failed_job_again(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = failed_job(ledger)
    code, out, _ = run(capsys, "retry", job_id)
    assert (code, out.split()[:3]) == (0, [job_id, "running", "again;"])
    assert claim(ledger).kind == "segment"


def test_dismiss_stops_a_job_at_once_or_when_its_worker_sees_it(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    running, _ = ledger.create_job(SPEC)
    claim(ledger)
    waiting, _ = ledger.create_job(SPEC)
    code, out, _ = run(capsys, "dismiss", running, waiting)
    assert code == 0
    assert out.splitlines() == [f"{running} running, stopping", f"{waiting} dismissed"]


def test_what_is_not_accepted_names_the_job_and_the_others_go_on(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = failed_job(ledger)
    waiting, _ = ledger.create_job(SPEC)
    code, out, err = run(capsys, "retry", waiting, "0" * 32, bad)
    assert code == 2 and out.startswith(bad)
    said = err.splitlines()
    assert said[0].startswith(f"slidereason jobs: job {waiting}: the job is accepted; accepted are")
    assert said[1] == f"slidereason jobs: job {'0' * 32}: no job has this id"
    code, _, err = run(capsys, "show", "0" * 32)
    assert code == 2 and "0" * 32 in err


def test_a_place_without_a_ledger_is_refused_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLIDEREASON_DATABASE_URL", raising=False)
    code, _, err = run(capsys, "list", "--data", str(tmp_path / "none"))
    assert code == 2 and "there is no ledger in" in err and "--database-url" in err
    assert not list(tmp_path.iterdir())
    assert run(capsys, "list", "--database-url", "nonsense")[0] == 2
    away = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    monkeypatch.setenv("SLIDEREASON_DATABASE_URL", away)
    code, _, err = run(capsys, "list")
    assert code == 1 and "cannot be reached" in err and "nobody" not in err


def test_a_limit_and_a_status_that_are_not_accepted(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "list", "--limit", "0")
    assert code == 2 and "1 or more" in err and "[--limit]" in err
    with pytest.raises(SystemExit) as stopped:
        main(["jobs", "list", "--status", "lost"])
    assert stopped.value.code == 2 and "successful" in capsys.readouterr().err


def test_it_needs_no_torch(ledger: Ledger, tmp_path: Path) -> None:
    code = (
        "import sys; from service.cli import main; assert main(['jobs', 'list']) == 0; "
        "print(sorted({'torch', 'transformers', 'model'} & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
