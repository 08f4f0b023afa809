"""Exports of finished jobs, which are units of their own kind, are found without looking at all that waits."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

EXPORTS = sa.text("state = 'waiting' AND kind = 'export'")


def upgrade() -> None:
    """Add the index."""
    op.create_index("units_exports", "units", ["position"], sqlite_where=EXPORTS, postgresql_where=EXPORTS)


def downgrade() -> None:
    """Drop the index, and the units that an older version would not know what to do with; their files stay."""
    op.execute("DELETE FROM units WHERE kind = 'export'")
    op.drop_index("units_exports", "units")
