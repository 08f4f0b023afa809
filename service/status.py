"""The status document of a job: its body, its entity tag, and how long a client should wait before it asks again."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from service.files import etag_of
from service.limits import JSON
from service.schemas import JobStatus, Link, Tiles
from worker.ledger import JobRow

RESULTS = "http://www.opengis.net/def/rel/ogc/1.0/results"
MESSAGES = {
    "accepted": "waiting for a worker",
    "running": "looking at tiles",
    "successful": "done",
    "failed": "failed",
    "dismissed": "dismissed",
}

SOON_S, LONGEST_S = 2, 30
AHEAD_PER_S = 10
"""So many jobs ahead of one that waits are worth a second more between two looks at it."""

POLLS_PER_S = 200.0
"""Status answers a second that one gateway process is content with; where that is too few, all come less often."""

BUSY_SHARE = 0.05
"""No more of a client's time than this should go into waiting for answers: a slow gateway is asked less often."""

PACE_S = 10.0


@dataclass(frozen=True)
class Notice:
    """A job as everybody who asks is shown it.

    Attributes:
        row: as the ledger had it.
        body: the status document, JSON.
        etag: its strong entity tag.
    """

    row: JobRow
    body: bytes
    etag: str

    @property
    def event_id(self) -> str:
        """Names this state of the job in an event stream, the same on every gateway."""
        return self.etag.strip('"')


def make_notice(job: JobRow) -> Notice:
    """Write a job's status document."""
    body = status_document(job).model_dump_json().encode()
    return Notice(job, body, etag_of(body))


def status_document(job: JobRow) -> JobStatus:
    """The job as OGC API Processes shows one."""
    error = None
    if job.status == "failed":
        error = {"code": job.error_code, "field": job.error_field, "detail": job.message}
    return JobStatus(
        jobID=job.job_id,
        status=job.status,
        message=job.message or MESSAGES[job.status],
        created=job.created,
        started=job.started,
        finished=job.finished,
        updated=job.updated,
        progress=job.progress,
        tiles=Tiles(done=job.tiles_done, total=job.tiles_total, failed=job.tiles_failed, skipped=job.tiles_skipped),
        coverage=job.coverage,
        eta_s=shown_eta_s(job.eta_s),
        queue_position=job.queue_position,
        slide=job.spec.slide_id,
        queries=list(job.spec.queries),
        model=job.spec.model,
        result=job.result,
        error=error,
        links=_links(job),
    )


def shown_eta_s(eta_s: float | None) -> float | None:
    """An estimate in steps of about a tenth, so that a document changes when it has something to say."""
    if eta_s is None:
        return None
    step = next((step for below, step in ((20, 1), (100, 5), (600, 30), (3600, 120)) if eta_s < below), 600)
    return float(step * math.ceil(eta_s / step))


def _links(job: JobRow) -> list[Link]:
    here = f"/v1/jobs/{job.job_id}"
    links = [
        Link(href=here, rel="self", type=JSON, title="Status"),
        Link(href=f"{here}/events", rel="monitor", type="text/event-stream", title="Status as it changes"),
    ]
    if job.status == "successful":
        links += [
            Link(href=f"{here}/overlay/", rel=RESULTS, type="application/vnd+zarr", title="Overlay (OME-Zarr 0.5)"),
            Link(href=f"{here}/overlay.zip", rel=RESULTS, type="application/zip", title="Overlay as one zip"),
            Link(href=f"{here}/regions", rel=RESULTS, type="application/geo+json", title="Regions"),
            Link(href=f"{here}/report", rel=RESULTS, type="text/html", title="Report for people"),
            Link(href=f"{here}/report", rel=RESULTS, type=JSON, title="Report for programs"),
            Link(href=f"{here}/exports", rel=RESULTS, type=JSON, title="Other forms"),
        ]
    return links


class Pollers:
    """How many clients poll, judged by their visits: one who comes every r seconds is seen once in r.

    Args:
        clock: seconds; monotonic.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._since = clock()
        self._visits, self._cycles_s, self._took_s = 0, 0.0, 0.0
        self._count = self._slowness_s = 0.0

    @property
    def count(self) -> float:
        """The number of clients that poll now, smoothed over some ten seconds."""
        self._age()
        return self._count

    def wait_s(self, job: JobRow, took_s: float = 0.0) -> int:
        """What to tell a client that polls an open job: `retry_after_s` under the load there is.

        Args:
            job: an open job.
            took_s: how long the client waited for this answer.
        """
        least_s = max(self.count / POLLS_PER_S, self._slowness_s / BUSY_SHARE)
        seconds = retry_after_s(job, min(least_s, LONGEST_S))
        self._visits += 1
        self._cycles_s += seconds + took_s
        self._took_s += took_s
        return seconds

    def _age(self) -> None:
        passed_s = self._clock() - self._since
        if passed_s >= 1.0:
            kept = math.exp(-passed_s / PACE_S)
            self._count = kept * self._count + (1 - kept) * self._cycles_s / passed_s
            self._slowness_s = kept * self._slowness_s + (1 - kept) * self._took_s / max(1, self._visits)
            self._since = self._clock()
            self._visits, self._cycles_s, self._took_s = 0, 0.0, 0.0


def retry_after_s(job: JobRow, least_s: float = 0.0) -> int:
    """How long to wait before asking for an open job again, in whole seconds.

    A tenth of what is left of one that runs, and longer the more jobs are ahead of one that waits; from 1 s to 30 s.

    Args:
        job: an open job.
        least_s: no shorter than this (there are many who ask). Then jobs are told different times, each always the
            same, so that those who came together do not come back together.
    """
    if job.status == "accepted":
        wanted = SOON_S + (job.queue_position or 0) / AHEAD_PER_S
    else:
        wanted = SOON_S if job.eta_s is None else job.eta_s / 10
    seconds = min(LONGEST_S, max(1, round(wanted), math.ceil(least_s)))
    return seconds + zlib.crc32(job.job_id.encode()) % (1 + (seconds - 1) // 2)
