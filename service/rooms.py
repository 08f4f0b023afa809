"""What every route reaches for: settings, ledger, artifacts, broker, catalogue."""

import logging
import time
from dataclasses import dataclass, replace
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from kombu.exceptions import OperationalError

from service.board import Board
from service.catalogue import Catalogue
from service.draining import Draining
from service.errors import Problem
from service.provisional import RegionFeed
from service.settings import Settings
from service.status import Pollers
from service.tenants import tenant_of
from worker.artifacts import Artifacts, open_artifacts
from worker.ledger import EVERYONE, JobRow, Ledger
from worker.queue import make_app, submit

log = logging.getLogger("slidereason.service")


SHARED = "slidereason.shared"
"""Where the scope of a request that came by a link says so."""


@dataclass(frozen=True)
class Shared:
    """What a request may see that came by a link instead of from its tenant: one job's results, for so long.

    Attributes:
        address: the link's own, below which the results lie.
        job_id, tenant: whose they are.
        left_s: seconds until it expires.
    """

    address: str
    job_id: str
    tenant: str
    left_s: float


@dataclass(frozen=True)
class Rooms:
    """The parts of the service that hold state, one set per application, as the tenant of a request may use them.

    Attributes:
        tenant: whose request it is.
        shared: the link it came by; None when it came from the tenant.
    """

    settings: Settings
    ledger: Ledger
    artifacts: Artifacts
    broker: Celery
    catalogue: Catalogue
    board: Board
    pollers: Pollers
    draining: Draining
    provisional: RegionFeed
    tenant: str = EVERYONE
    shared: Shared | None = None

    @classmethod
    def open(cls, settings: Settings) -> "Rooms":
        """Connect to what the settings name; the embedded defaults lie in the data folder.

        Raises:
            ValueError: no broker is named (`slidereason serve` starts one and names it).
        """
        if not settings.broker_url:
            raise ValueError("broker_url is not set: run `slidereason serve`, or set SLIDEREASON_BROKER_URL=redis://…")
        if settings.database_url is None or settings.artifacts is None:  # else only an upload needs it, and makes it
            settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        ledger, artifacts = Ledger(settings.ledger_url), open_artifacts(settings.artifacts_place)
        return cls(
            settings,
            ledger,
            artifacts,
            make_app(settings.broker_url),
            Catalogue(ledger, settings),
            Board(ledger),
            Pollers(time.monotonic),
            Draining(),
            RegionFeed(ledger, artifacts),
        )

    def close(self) -> None:
        """Let go of connections, and end what is being fetched."""
        self.catalogue.elsewhere.close()
        self.provisional.close()
        self.broker.close()
        self.artifacts.close()
        self.ledger.close()

    def address(self, job_id: str) -> str:
        """Where the job's results lie for whoever asks, for links within them."""
        return f"/v1/jobs/{job_id}" if self.shared is None else self.shared.address

    def send_ticket(self, model: str) -> None:
        """Wake a worker. Without a broker the job waits in the ledger until the sweeper sends one."""
        try:
            submit(self.broker, model)
        except (OperationalError, OSError):
            log.warning("the broker is away; the job waits in the ledger")

    def finished(self, job_id: str) -> JobRow:
        """A job of this tenant whose results can be read.

        Raises:
            JobNotFound: this tenant has no such job.
            JobExpired: its results were removed.
            Problem: 409, it has none yet (with Retry-After) or never will.
        """
        job = self.ledger.job(job_id, self.tenant)
        if job.open:
            retry = {"Retry-After": str(self.pollers.wait_s(job))}
            detail = f"the job is {job.status}, {job.progress} % done; results are there once it is successful"
            raise Problem(409, "job-not-finished", detail, headers=retry, job_status=job.status, progress=job.progress)
        if job.status != "successful":
            raise Problem(
                409, f"job-{job.status}", f"the job was {job.status} and left no results", job_status=job.status
            )
        return job


async def _all_rooms(request: Request) -> Rooms:
    return request.app.state.rooms


async def _rooms(request: Request) -> Rooms:
    rooms: Rooms = request.app.state.rooms
    shared: Shared | None = request.scope.get(SHARED)
    if shared is not None:
        return replace(rooms, tenant=shared.tenant, shared=shared)
    tenant = tenant_of(request.headers, rooms.settings.tenant_header)
    return rooms if tenant == rooms.tenant else replace(rooms, tenant=tenant)


# both are coroutines, so that no request waits for a thread only to be handed what is there already
Open = Annotated[Rooms, Depends(_all_rooms)]
"""Type of a parameter that receives the rooms whoever asks: routes of the operator's, which show no tenant's work."""

In = Annotated[Rooms, Depends(_rooms)]
"""Type of a parameter that receives the rooms as the request's tenant may use them."""
