"""The ledger's tables, its clock and its connections: one code path for SQLite (WAL) and PostgreSQL."""

from pathlib import Path

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("stopping", Boolean, nullable=False, default=False),
    Column("model", String(200), nullable=False),
    Column("slide_id", String(200), nullable=False),
    Column("priority", Integer, nullable=False, default=0),
    Column("message", Text, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("updated", Float, nullable=False),
    Column("tiles_done", Integer, nullable=False, default=0),
    Column("tiles_total", Integer, nullable=False, default=0),
    Column("tiles_failed", Integer, nullable=False, default=0),
    Column("tiles_skipped", Integer, nullable=False, default=0),
    Column("error_code", String(64)),
    Column("error_field", String(64)),
    Column("spec", JSON, nullable=False),
    Column("plan", JSON),
    Column("slide", JSON),
    Column("card", JSON),
    Column("result", JSON),
    Index("jobs_by_age", "created", "job_id"),
    Index("jobs_by_status", "status"),
)
"""One row per job; `plan` and `slide` are written by the plan unit, `result` by the finish unit."""

units = Table(
    "units",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(8), primary_key=True),
    Column("key", String(32), primary_key=True),
    Column("position", Integer, nullable=False, default=0),
    Column("state", String(8), nullable=False),
    Column("token", Integer, nullable=False, default=0),
    Column("owner", String(64)),
    Column("lease_until", Float),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("faults", Integer, nullable=False, default=0),
    Column("lost", Integer, nullable=False, default=0),
    Column("isolated", Boolean, nullable=False, default=False),
    Column("in_flight", String(32)),
    Column("deaths", JSON, nullable=False, default=dict),
    Column("tiles", Integer, nullable=False, default=0),
    Column("tiles_done", Integer, nullable=False, default=0),
    Column("tiles_failed", Integer, nullable=False, default=0),
    Column("summary", JSON),
    Column("error", Text),
    Index("units_by_state", "state", "lease_until"),
)
"""One row per leased unit of work: a job's plan, each of its blocks, its finish.

`state` goes waiting -> leased -> done | failed, back to waiting when an owner is lost; a finish row is `held` until the
last block is in. `token` grows by one with every claim and fences off late owners.
"""

workers = Table(
    "workers",
    metadata,
    Column("worker_id", String(64), primary_key=True),
    Column("heard", Float, nullable=False),
    Column("card", JSON, nullable=False),
    Column("models", JSON, nullable=False),
)

slides = Table(
    "slides",
    metadata,
    Column("slide_id", String(200), primary_key=True),
    Column("reference", Text, nullable=False),
    Column("details", JSON, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(128), nullable=False),
    Column("job_id", String(32), nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("until", Float, nullable=False),
)
"""Leases of things that are not units: the sweeper."""


class database_now(GenericFunction):  # noqa: N801  (SQL functions are spelled in lower case)
    """Seconds since 1970 by the database's clock, the only clock that leases are measured with."""

    type = Float()
    name = "database_now"
    inherit_cache = True


@compiles(database_now, "sqlite")
def _now_sqlite(element, compiler, **kw) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_now, "postgresql")
def _now_postgresql(element, compiler, **kw) -> str:
    return "CAST(extract(epoch from clock_timestamp()) AS double precision)"


def connect(url: str) -> Engine:
    """Open the ledger's database and create its tables where they are missing.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://…`.

    Returns:
        An engine whose transactions start with BEGIN IMMEDIATE on SQLite, unless the connection has the execution
        option `reading`: a deferred transaction that was reading and then wants to write fails when another wrote.
    """
    if make_url(url).get_backend_name() == "sqlite":
        engine = _connect_sqlite(url)
    else:
        engine = create_engine(url, pool_pre_ping=True, pool_size=8, max_overflow=24)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # two processes that start at once must not both create tables
            connection.execute(text("SELECT pg_advisory_xact_lock(7231)"))
        metadata.create_all(connection, checkfirst=True)
    return engine


def _connect_sqlite(url: str) -> Engine:
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=8, max_overflow=24, connect_args={"timeout": 60.0})

    @event.listens_for(engine, "connect")
    def _configure(connection, _record) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, below
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # a job that was answered with 202 survives a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
