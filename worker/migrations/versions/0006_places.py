"""Which server a delivery goes to, so that senders can let servers take turns."""

from urllib.parse import urlsplit

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

OPEN = sa.text("state IN ('waiting', 'sending')")
COLUMNS = ["place", "tenant", "target", "not_before"]
TO_FILL = "SELECT d.delivery_id, d.target, j.callback FROM deliveries d JOIN jobs j ON j.job_id = d.job_id WHERE "


def upgrade() -> None:
    """Add the column, and fill it where something is still to be delivered."""
    op.add_column("deliveries", sa.Column("place", sa.String(300), nullable=False, server_default=""))
    connection = op.get_bind()
    for row in connection.execute(sa.text(f"{TO_FILL}{OPEN.text}")).all():
        place = _place(row.callback or "") if row.target == "webhook" else row.target
        filled = sa.text("UPDATE deliveries SET place = :place WHERE delivery_id = :id")
        connection.execute(filled, {"place": place, "id": row.delivery_id})
    op.create_index("deliveries_lanes", "deliveries", COLUMNS, sqlite_where=OPEN, postgresql_where=OPEN)


def downgrade() -> None:
    """Drop it."""
    op.drop_index("deliveries_lanes", "deliveries")
    op.drop_column("deliveries", "place")


def _place(url: str) -> str:
    """`host:port`; an address that cannot be read is a place of its own kind."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        return "webhook"
    return f"{(parts.hostname or '').rstrip('.')}:{port}"[:300]
