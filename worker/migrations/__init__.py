"""The versions of the ledger's tables, and how a database gets from one to the next (Alembic).

Files in `versions/` are numbered; each says what it changes and how to go back. The tables as they are now stand in
`worker.ledger_schema`, and a test holds the two against each other on SQLite and PostgreSQL.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from worker.errors import SlideReasonError

LOCK = 7231
"""PostgreSQL advisory lock: of processes that start at once, one upgrades and the others wait for it."""

FIRST = "0001"
"""What tables without a version are: they were made before there were versions."""


def config_for(connection: Connection | None = None) -> Config:
    """Alembic's configuration; `connection` is the one to work on."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The version that this code writes and reads."""
    return ScriptDirectory.from_config(config_for()).get_current_head()


def version_of(connection: Connection) -> str | None:
    """The version of a database's tables; None when it has none of ours."""
    version = MigrationContext.configure(connection).get_current_revision()
    if version is None and inspect(connection).has_table("jobs"):
        return FIRST
    return version


def migrate(engine: Engine, upgrade: bool = True) -> str | None:
    """Bring a database to `head()` in one transaction.

    Args:
        engine: the database.
        upgrade: False only checks.

    Returns:
        The version before; None when the database was empty.

    Raises:
        SlideReasonError: a newer version, or an older one that is not to be upgraded; says which command helps.
    """
    wanted = head()
    with engine.connect().execution_options(reading=True) as connection, connection.begin():
        if MigrationContext.configure(connection).get_current_revision() == wanted:
            return wanted
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        version = version_of(connection)
        if version == wanted:
            return version
        if version is not None and version > wanted:
            raise SlideReasonError(
                f"the ledger's tables are of version {version} and this version of SlideReason knows {wanted}; run the "
                "newer one, or take them back with its `slidereason ledger downgrade`"
            )
        if not upgrade:
            raise SlideReasonError(f"the ledger's tables are of version {version}; run `slidereason ledger upgrade`")
        config = config_for(connection)
        if version == FIRST:
            command.stamp(config, FIRST)
        command.upgrade(config, "head")
        return version


def downgrade(engine: Engine, version: str) -> None:
    """Take a database back to an older version, for a rollback; what only the newer one knew is dropped.

    Raises:
        SlideReasonError: there is no such version.
    """
    known = [script.revision for script in ScriptDirectory.from_config(config_for()).walk_revisions()]
    if version not in known:
        raise SlideReasonError(f"version {version!r} is not known; accepted are {', '.join(sorted(known))}")
    with engine.begin() as connection:
        command.downgrade(config_for(connection), version)
