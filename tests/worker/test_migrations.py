"""The ledger's tables through their versions: from nothing, from before there were versions, there and back."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from tests.databases import database_urls
from worker import migrations
from worker.errors import SlideReasonError
from worker.ledger import Ledger
from worker.ledger_cli import run_ledger
from worker.ledger_schema import metadata, open_database
from worker.types import JobSpec

SPEC = JobSpec("/slides/a.svs", "a", ("tumour",), model="hue")
OLD_JOB = "INSERT INTO jobs (job_id, status, stopping, model, slide_id, priority, message, created, updated, spec, " + (
    "tiles_done, tiles_total, tiles_failed, tiles_skipped) "
    "VALUES (:id, 'accepted', false, 'hue', 'a', 0, '', 1.0, 1.0, :spec, 0, 0, 0, 0)"
)
OLD_UNIT = (
    "INSERT INTO units (job_id, kind, key, position, state, token, not_before, faults, lost, isolated, deaths, tiles, "
    "tiles_done, tiles_failed) VALUES (:id, 'plan', '', 0, 'waiting', 0, 0.0, 0, 0, false, '{}', 0, 0, 0)"
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database_urls(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_database(url)
    yield engine
    engine.dispose()


def make_old(engine: Engine) -> None:
    """A database as the first version left it, without a version, with one job."""
    with engine.begin() as connection:
        command.upgrade(migrations.config_for(connection), migrations.FIRST)
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(text(OLD_JOB), {"id": "a" * 32, "spec": json.dumps(SPEC.to_json())})
        connection.execute(text(OLD_UNIT), {"id": "a" * 32})


def test_the_versions_lead_to_the_tables_as_they_are(engine: Engine):
    assert migrations.migrate(engine) is None
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_ledger_from_before_there_were_versions_goes_on(url: str, engine: Engine):
    make_old(engine)
    ledger = Ledger(url)
    row = ledger.job("a" * 32)
    assert (row.status, row.tenant, row.units_left) == ("accepted", "default", 1)
    assert ledger.claim("w", ["hue"]).job_id == "a" * 32
    ledger.close()


def test_there_and_back_keeps_the_jobs(url: str, engine: Engine):
    ledger = Ledger(url)
    job_id, _ = ledger.create_job(SPEC, tenant="north")
    ledger.close()
    migrations.downgrade(engine, "0001")
    assert "tenants" not in inspect(engine).get_table_names()
    assert "tenant" not in {column["name"] for column in inspect(engine).get_columns("jobs")}
    ledger = Ledger(url)
    assert ledger.claim("w", ["hue"]).job_id == job_id
    ledger.close()


def test_many_that_start_at_once_upgrade_once(url: str, engine: Engine):
    make_old(engine)
    with ThreadPoolExecutor(4) as pool:
        ledgers = list(pool.map(lambda _: Ledger(url), range(4)))
    for ledger in ledgers:
        assert ledger.counts()["accepted"] == 1
        ledger.close()


def test_newer_tables_are_refused_and_old_ones_unless_they_may_be_upgraded(url: str, engine: Engine):
    make_old(engine)
    with pytest.raises(SlideReasonError, match="slidereason ledger upgrade"):
        Ledger(url, upgrade=False)
    migrations.migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SlideReasonError, match=f"version 9999 .* knows {migrations.head()}"):
        Ledger(url)


def test_the_command(url: str, engine: Engine, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLIDEREASON_DATABASE_URL", raising=False)
    assert run_ledger(["show"]) == 2
    assert "--database-url" in capsys.readouterr().err
    monkeypatch.setenv("SLIDEREASON_DATABASE_URL", url)
    assert [run_ledger([*words.split()]) for words in ("show", "upgrade", "upgrade", "downgrade 0001")] == [0] * 4
    said, head = capsys.readouterr().out.splitlines(), migrations.head()
    assert said[0].startswith("version none") and said[1:3] == [f"version none -> {head}", f"version {head}, as before"]
    assert said[3].startswith(f"version 0001; this SlideReason knows {head}")
    assert run_ledger(["downgrade", "7"]) == 2
    assert "accepted are 0001, 0002, 0003" in capsys.readouterr().err
    assert run_ledger(["--database-url", "postgresql+psycopg://x@127.0.0.1:1/none", "show"]) == 1
