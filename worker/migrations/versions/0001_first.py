"""The tables as they were before they had versions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("stopping", sa.Boolean, nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("slide_id", sa.String(200), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("finished", sa.Float),
        sa.Column("updated", sa.Float, nullable=False),
        *(sa.Column(f"tiles_{name}", sa.Integer, nullable=False) for name in ("done", "total", "failed", "skipped")),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_field", sa.String(64)),
        sa.Column("spec", sa.JSON, nullable=False),
        *(sa.Column(name, sa.JSON) for name in ("plan", "slide", "card", "result")),
    )
    op.create_index("jobs_by_age", "jobs", ["created", "job_id"])
    op.create_index("jobs_by_status", "jobs", ["status"])
    op.create_table(
        "units",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("key", sa.String(32), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("lease_until", sa.Float),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("faults", sa.Integer, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("isolated", sa.Boolean, nullable=False),
        sa.Column("in_flight", sa.String(32)),
        sa.Column("deaths", sa.JSON, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("tiles", "tiles_done", "tiles_failed")),
        sa.Column("summary", sa.JSON),
        sa.Column("error", sa.Text),
    )
    op.create_index("units_by_state", "units", ["state", "lease_until"])
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.String(64), primary_key=True),
        sa.Column("heard", sa.Float, nullable=False),
        sa.Column("card", sa.JSON, nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
    )
    op.create_table(
        "slides",
        sa.Column("slide_id", sa.String(200), primary_key=True),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_table(
        "idempotency",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_hash", sa.String(128), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Drop every table."""
    for table in ("leases", "idempotency", "slides", "workers", "units", "jobs"):
        op.drop_table(table)
