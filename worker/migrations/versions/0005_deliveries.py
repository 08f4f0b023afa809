"""What is delivered when a job has ended, and where a job is to tell that it has."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

OPEN = sa.text("state IN ('waiting', 'sending')")


def upgrade() -> None:
    """Add the table and the column."""
    op.add_column("jobs", sa.Column("callback", sa.Text))
    op.create_table(
        "deliveries",
        sa.Column("delivery_id", sa.String(40), primary_key=True),
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("target", sa.String(16), nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("message", sa.JSON, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("give_up_at", sa.Float),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("created", sa.Float, nullable=False),
        sa.UniqueConstraint("job_id", "target", "event", name="deliveries_once"),
    )
    op.create_index("deliveries_due", "deliveries", ["not_before"], sqlite_where=OPEN, postgresql_where=OPEN)


def downgrade() -> None:
    """Drop them; what was not delivered yet never is."""
    op.drop_index("deliveries_due", "deliveries")
    op.drop_table("deliveries")
    op.drop_column("jobs", "callback")
