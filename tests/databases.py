"""Databases for tests of the ledger: a SQLite file, and a PostgreSQL where one can be reached or started."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url


@contextmanager
def database_urls(kind: str, folder: Path) -> Iterator[str]:
    """An empty database of its own.

    Args:
        kind: `sqlite`, or `postgresql`: a schema in `SLIDEREASON_TEST_POSTGRES_URL`'s database; skips without one.
        folder: for the SQLite file.
    """
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'ledger.sqlite'}"
        return
    server = os.environ.get("SLIDEREASON_TEST_POSTGRES_URL")
    if not server:
        pytest.skip("no PostgreSQL: set SLIDEREASON_TEST_POSTGRES_URL=postgresql+psycopg://…")
    name = f"slidereason_test_{uuid.uuid4().hex}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()
