"""What every route reaches for: settings, ledger, artifacts, broker, catalogue."""

import logging
from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from kombu.exceptions import OperationalError

from service.catalogue import Catalogue
from service.errors import Problem
from service.settings import Settings
from worker.artifacts import LocalArtifacts
from worker.ledger import JobRow, Ledger
from worker.queue import make_app, submit

log = logging.getLogger("slidereason.service")

RETRY_RUNNING_S = 2
RETRY_WAITING_S = 5


@dataclass(frozen=True)
class Rooms:
    """The parts of the service that hold state; one set per application."""

    settings: Settings
    ledger: Ledger
    artifacts: LocalArtifacts
    broker: Celery
    catalogue: Catalogue

    @classmethod
    def open(cls, settings: Settings) -> "Rooms":
        """Connect to what the settings name; the embedded defaults lie in the data folder.

        Raises:
            ValueError: no broker is named (`slidereason serve` starts one and names it).
        """
        if not settings.broker_url:
            raise ValueError("broker_url is not set: run `slidereason serve`, or set SLIDEREASON_BROKER_URL=redis://…")
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        ledger = Ledger(settings.database_url or f"sqlite:///{settings.data / 'ledger.sqlite'}")
        artifacts = LocalArtifacts(settings.artifacts or settings.data / "artifacts")
        return cls(settings, ledger, artifacts, make_app(settings.broker_url), Catalogue(ledger, settings))

    def close(self) -> None:
        """Let go of connections."""
        self.broker.close()
        self.ledger.close()

    def send_ticket(self, model: str) -> None:
        """Wake a worker. Without a broker the job waits in the ledger until the sweeper sends one."""
        try:
            submit(self.broker, model)
        except (OperationalError, OSError):
            log.warning("the broker is away; the job waits in the ledger")

    def finished(self, job_id: str) -> JobRow:
        """A job whose results can be read.

        Raises:
            JobNotFound: no such job.
            Problem: 409, it has none yet (with Retry-After) or never will.
        """
        job = self.ledger.job(job_id)
        if job.open:
            retry = {"Retry-After": str(retry_after_s(job))}
            detail = f"the job is {job.status}, {job.progress} % done; results are there once it is successful"
            raise Problem(409, "job-not-finished", detail, headers=retry, job_status=job.status, progress=job.progress)
        if job.status != "successful":
            raise Problem(
                409, f"job-{job.status}", f"the job was {job.status} and left no results", job_status=job.status
            )
        return job


def retry_after_s(job: JobRow) -> int:
    """How long to wait before asking again: a tenth of what is left, between 1 s and 30 s."""
    if job.status == "accepted":
        return RETRY_WAITING_S if job.queue_position else RETRY_RUNNING_S
    return min(30, max(1, round((job.eta_s or 10 * RETRY_RUNNING_S) / 10)))


def _rooms(request: Request) -> Rooms:
    return request.app.state.rooms


In = Annotated[Rooms, Depends(_rooms)]
"""Type of a route's parameter that receives the rooms."""
