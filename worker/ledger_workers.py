"""Workers in the ledger: who lives, what they serve, and whose turn it is to sweep."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from worker.ledger_rules import clock
from worker.ledger_schema import leases, workers

if TYPE_CHECKING:
    from model.segmenter import SegmenterCard


class WorkerLedger:
    """Heartbeats and named leases, and the two kinds of transaction everything else is made of."""

    engine: Engine
    lease_s: float

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self.engine.connect().execution_options(reading=True) as connection, connection.begin():
            yield connection

    def heartbeat(self, worker_id: str, card: "SegmenterCard", models: Sequence[str]) -> None:
        """Say that a worker lives, and what it serves."""
        with self._writing() as connection:
            values = {"heard": clock(connection), "card": asdict(card), "models": list(models)}
            changed = connection.execute(update(workers).where(workers.c.worker_id == worker_id).values(**values))
            if changed.rowcount == 0:
                connection.execute(insert(workers).values(worker_id=worker_id, **values))

    def forget_worker(self, worker_id: str) -> None:
        """Remove a worker that stopped in good order."""
        with self._writing() as connection:
            connection.execute(workers.delete().where(workers.c.worker_id == worker_id))

    def take_lease(self, name: str, owner: str, for_s: float) -> bool:
        """Whether `owner` now holds the named lease (the sweeper's) for the next `for_s` seconds."""
        try:
            with self._writing() as connection:
                now = clock(connection)
                free = (leases.c.until < now) | (leases.c.owner == owner)
                changed = connection.execute(
                    update(leases).where(leases.c.name == name, free).values(owner=owner, until=now + for_s)
                )
                if changed.rowcount:
                    return True
                if connection.scalar(select(leases.c.owner).where(leases.c.name == name)) is not None:
                    return False
                connection.execute(insert(leases).values(name=name, owner=owner, until=now + for_s))
                return True
        except IntegrityError:  # another took it between our look and our insert
            return False
