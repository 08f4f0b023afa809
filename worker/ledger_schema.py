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
    TextClause,
    UniqueConstraint,
    create_engine,
    event,
    false,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from worker.migrations import migrate

metadata = MetaData()


def partial(condition: str) -> dict[str, TextClause]:
    """Options of an index over only the rows where an SQL condition holds."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


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
    Column("tenant", String(64), nullable=False, server_default="default"),
    Column("trace", String(64)),
    Column("ready", Integer, nullable=False, server_default="0"),
    Column("units_left", Integer, nullable=False, server_default="1"),
    Column("expired", Float),
    Column("purged", Boolean, nullable=False, server_default=false()),
    Column("callback", Text),
    Index("jobs_by_age", "created", "job_id"),
    Index("jobs_by_status", "status"),
    Index("jobs_by_tenant", "tenant", "created"),
    Index("jobs_by_end", "finished"),
)
"""One row per job; `plan` and `slide` are written by the plan unit, `result` by the finish unit.

`ready` counts the units that wait while the job may go on, `units_left` those that are not through: the scheduler reads
no other table before it has chosen a job. `expired` is when its results were given up, `purged` that they are gone.
`callback` is where its end is told; it may hold a secret, and is never shown.
"""

Index("jobs_ready", jobs.c.model, jobs.c.priority, jobs.c.tenant, jobs.c.created, **partial("ready > 0"))
Index(
    "jobs_ready_short", jobs.c.model, jobs.c.priority, jobs.c.tenant, jobs.c.units_left, jobs.c.created,
    **partial("ready > 0"),
)  # fmt: skip

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
    Column("done", Integer),
    Index("units_by_state", "state", "lease_until"),
)
"""One row per leased unit of work: a job's plan, each of its blocks, its finish, and each export that was asked for.

`state` goes waiting -> leased -> done | failed, back to waiting when an owner is lost; a finish row is `held` until the
last block is in. `token` grows by one with every claim and fences off late owners. `done` says the how manieth block of
its job a block was to be done.
"""

Index("units_waiting", units.c.job_id, units.c.position, **partial("state = 'waiting'"))
Index("units_exports", units.c.position, **partial("state = 'waiting' AND kind = 'export'"))
Index("units_done", units.c.job_id, units.c.done, **partial("done IS NOT NULL"))
Index("units_isolated", units.c.job_id, sqlite_where=units.c.isolated, postgresql_where=units.c.isolated)

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("served", Float, nullable=False, default=0.0),
    Column("started", Float, nullable=False, default=0.0),
)
"""What each tenant has had, in tiles of virtual time: `worker.scheduler.TenantShare`."""

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

Index("idempotency_by_job", idempotency.c.job_id)

links = Table(
    "links",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("job_id", String(32), ForeignKey("jobs.job_id", ondelete="CASCADE"), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Index("links_by_job", "job_id"),
    Index("links_by_end", "expires"),
)
"""Links that show a job's results to whoever has the token, of which only the SHA-256 is kept, until they expire."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("delivery_id", String(40), primary_key=True),
    Column("job_id", String(32), ForeignKey("jobs.job_id", ondelete="CASCADE"), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("target", String(16), nullable=False),
    Column("event", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("message", JSON, nullable=False),
    Column("token", Integer, nullable=False, default=0),
    Column("tries", Integer, nullable=False, default=0),
    Column("owner", String(64)),
    Column("not_before", Float, nullable=False),
    Column("give_up_at", Float),
    Column("said", Text, nullable=False, default=""),
    Column("status", Integer),
    Column("created", Float, nullable=False),
    Column("place", String(300), nullable=False, server_default=""),
    UniqueConstraint("job_id", "target", "event", name="deliveries_once"),
)
"""The outbox: what is sent out of the house, a row for each target of each event of a job.

`state` goes waiting -> sending -> delivered | failed, back to waiting to be tried again. `not_before` is when it may be
claimed, also while it is being sent: then its sender no longer renews it. `give_up_at` is set at the first try. `place`
is the server it goes to, `host:port` or the target.
"""

Index("deliveries_due", deliveries.c.not_before, **partial("state IN ('waiting', 'sending')"))
Index(
    "deliveries_lanes", deliveries.c.place, deliveries.c.tenant, deliveries.c.target, deliveries.c.not_before,
    **partial("state IN ('waiting', 'sending')"),
)  # fmt: skip

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


PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""A PostgreSQL whose host is gone is noticed within half a minute (seconds; milliseconds the last)."""

POOL = {"pool_size": 8, "max_overflow": 24, "hide_parameters": True}
"""Errors, which are logged, do not repeat what was to be written: questions, and addresses that may hold a secret."""

SILENT_S = 10.0
"""So long may a process say nothing amid a transaction, then PostgreSQL ends that, and with it its locks. Ours take
milliseconds: whoever is silent is stopped, or its host is gone, and would hold up its job for as long."""


def connect(url: str, upgrade: bool = True) -> Engine:
    """Open the ledger's database.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://…`.
        upgrade: bring its tables to this version's where they are older or missing.

    Returns:
        An engine whose transactions start with BEGIN IMMEDIATE on SQLite, unless the connection has the execution
        option `reading`: a deferred transaction that was reading and then wants to write fails when another wrote.

    Raises:
        SlideReasonError: the tables are of a newer version than this one, or older and not to be upgraded.
    """
    engine = open_database(url)
    try:
        migrate(engine, upgrade)
    except BaseException:
        engine.dispose()
        raise
    return engine


def open_database(url: str) -> Engine:
    """The same without a look at the tables."""
    if make_url(url).get_backend_name() == "sqlite":
        return _connect_sqlite(url)
    return _connect_postgresql(url)


def _connect_postgresql(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=True, connect_args=PATIENCE, **POOL)

    @event.listens_for(engine, "connect")
    def _configure(connection, _record) -> None:
        # Not an option of the connection's start, which poolers refuse.
        connection.execute(f"SET idle_in_transaction_session_timeout = {round(SILENT_S * 1000)}")
        connection.commit()  # else the pool's rollback takes it back

    return engine


def _connect_sqlite(url: str) -> Engine:
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 60.0}, **POOL)

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
