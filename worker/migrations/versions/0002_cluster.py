"""Tenants, traces, retention, and what the scheduler reads of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

READY = sa.text("ready > 0")
WAITING = sa.text("state = 'waiting'")
ISOLATED = sa.text("isolated")
NEW = ("tenant", "trace", "ready", "units_left", "expired", "purged")

COUNT_UNITS = """
    UPDATE jobs SET
        units_left = (SELECT count(*) FROM units u WHERE u.job_id = jobs.job_id AND u.state NOT IN ('done', 'failed')),
        ready = CASE WHEN status IN ('accepted', 'running') AND NOT stopping THEN
            (SELECT count(*) FROM units u WHERE u.job_id = jobs.job_id AND u.state = 'waiting') ELSE 0 END
"""


def upgrade() -> None:
    """Add the columns, and fill those that are counted."""
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("served", sa.Float, nullable=False),
        sa.Column("started", sa.Float, nullable=False),
    )
    for column in (
        sa.Column("tenant", sa.String(64), nullable=False, server_default="default"),
        sa.Column("trace", sa.String(64)),
        sa.Column("ready", sa.Integer, nullable=False, server_default="0"),
        sa.Column("units_left", sa.Integer, nullable=False, server_default="1"),
        sa.Column("expired", sa.Float),
        sa.Column("purged", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("jobs", column)
    op.execute("INSERT INTO tenants VALUES ('default', 0, 0)")  # whose the jobs are that were here before
    op.execute(COUNT_UNITS)
    op.create_index("jobs_by_tenant", "jobs", ["tenant", "created"])
    op.create_index("jobs_by_end", "jobs", ["finished"])
    for name, last in (("jobs_ready", ["created"]), ("jobs_ready_short", ["units_left", "created"])):
        columns = ["model", "priority", "tenant", *last]
        op.create_index(name, "jobs", columns, sqlite_where=READY, postgresql_where=READY)
    columns = ["job_id", "position"]
    op.create_index("units_waiting", "units", columns, sqlite_where=WAITING, postgresql_where=WAITING)
    op.create_index("units_isolated", "units", ["job_id"], sqlite_where=ISOLATED, postgresql_where=ISOLATED)
    op.create_index("idempotency_by_job", "idempotency", ["job_id"])


def downgrade() -> None:
    """Drop what was added; every job then belongs to everyone, and expired ones are gone."""
    op.execute("DELETE FROM jobs WHERE expired IS NOT NULL")
    op.drop_index("idempotency_by_job", "idempotency")
    op.drop_index("units_isolated", "units")
    op.drop_index("units_waiting", "units")
    for name in ("jobs_ready", "jobs_ready_short", "jobs_by_end", "jobs_by_tenant"):
        op.drop_index(name, "jobs")
    for column in NEW:
        op.drop_column("jobs", column)
    op.drop_table("tenants")
