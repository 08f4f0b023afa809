"""Links that show a job's results for a while, and in which order its blocks were done."""


import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

DONE = sa.text("done IS NOT NULL")


def upgrade() -> None:
    """Add the table and the column; blocks that were done before have no place in the order."""
    op.create_table(
        "links",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_index("links_by_job", "links", ["job_id"])
    op.create_index("links_by_end", "links", ["expires"])
    op.add_column("units", sa.Column("done", sa.Integer))
    op.create_index("units_done", "units", ["job_id", "done"], sqlite_where=DONE, postgresql_where=DONE)


def downgrade() -> None:
    """Drop them; links that were given out open nothing any more."""
    op.drop_index("units_done", "units")
    op.drop_column("units", "done")
    op.drop_index("links_by_end", "links")
    op.drop_index("links_by_job", "links")
    op.drop_table("links")
