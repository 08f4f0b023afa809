"""`slidereason ledger`: the version of the ledger's tables, and moving it."""

import argparse
import os
import sys
from collections.abc import Sequence

from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from worker.errors import SlideReasonError

BAD_INPUT, FAILED = 2, 1


def run_ledger(argv: Sequence[str]) -> int:
    """`slidereason ledger show|upgrade|downgrade`.

    Returns:
        0; 2 when the database is not named, or a version is not known; 1 when it cannot be reached.
    """
    options = _parser().parse_args(argv)
    url = options.database_url or os.environ.get("SLIDEREASON_DATABASE_URL")
    if not url:
        print("slidereason ledger: give --database-url, or set SLIDEREASON_DATABASE_URL", file=sys.stderr)
        return BAD_INPUT
    try:
        print(_run(options, url))
    except (SlideReasonError, ArgumentError) as error:
        print(f"slidereason ledger: {error}", file=sys.stderr)
        return BAD_INPUT
    except SQLAlchemyError as error:
        print(f"slidereason ledger: the database cannot be reached: {type(error).__name__}", file=sys.stderr)
        return FAILED
    return 0


def _run(options: argparse.Namespace, url: str) -> str:
    from worker import migrations
    from worker.ledger_schema import open_database

    engine = open_database(url)
    try:
        if options.action == "upgrade":
            before = migrations.migrate(engine)
            after = migrations.head()
            return f"version {after}, as before" if before == after else f"version {before or 'none'} -> {after}"
        if options.action == "downgrade":
            migrations.downgrade(engine, options.version)
        with engine.connect().execution_options(reading=True) as connection:
            return f"version {migrations.version_of(connection) or 'none'}; this SlideReason knows {migrations.head()}"
    finally:
        engine.dispose()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slidereason ledger", description="The version of the ledger's tables.")
    parser.add_argument("--database-url", help="sqlite:///… or postgresql+psycopg://… (SLIDEREASON_DATABASE_URL)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|upgrade|downgrade")
    actions.add_parser("show", help="the version it has, and the one this program knows")
    actions.add_parser("upgrade", help="bring it to this program's version; safe to repeat, and by several at once")
    down = actions.add_parser("downgrade", help="take it back before an older program is started")
    down.add_argument("version", help="as `show` of that program says")
    return parser
