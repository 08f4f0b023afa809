"""Links in the ledger: who has the token sees one job's results, read-only, until the link expires or is revoked.

Of a token only the SHA-256 is kept, so that nobody who reads the ledger can use a link. A token is 256 random bits:
there is nothing to guess, and no need of a slow hash.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, insert, or_, select

from worker.errors import JobConflict
from worker.ledger_rows import require_job, time_of
from worker.ledger_rules import clock, lock_job
from worker.ledger_schema import jobs, links
from worker.ledger_workers import WorkerLedger

TOKEN_BYTES = 32
MOST_LINKS = 1000
"""Links of one job at a time."""


@dataclass(frozen=True)
class LinkRow:
    """What a link opens: whose job, until when (UTC), and how many seconds that is from now."""

    job_id: str
    tenant: str
    expires: datetime
    left_s: float


class LinkLedger(WorkerLedger):
    """Gives out links, and takes them back."""

    def make_link(self, job_id: str, tenant: str, expires_s: float) -> tuple[str, datetime]:
        """Open a job's results to whoever has the token.

        Args:
            job_id: a job of this tenant.
            tenant: who shares it.
            expires_s: for how long.

        Returns:
            The token, which is kept nowhere, and when it expires.

        Raises:
            JobNotFound, JobExpired: there is no such job, or not any more.
            JobConflict: it has `MOST_LINKS` links that are open.
        """
        token = secrets.token_urlsafe(TOKEN_BYTES)
        with self._writing() as connection:
            now = lock_job(connection, job_id)
            row = connection.execute(select(jobs.c.tenant, jobs.c.expired).where(jobs.c.job_id == job_id)).first()
            require_job(row, job_id, tenant)
            still = (links.c.job_id == job_id, links.c.expires > now)
            if connection.scalar(select(func.count()).select_from(links).where(*still)) >= MOST_LINKS:
                detail = f"the job has {MOST_LINKS} links that are open; revoke them, or let some expire"
                raise JobConflict(detail, subject=job_id)
            values = {"token_hash": hash_of(token), "job_id": job_id, "tenant": tenant, "created": now}
            connection.execute(insert(links).values(**values, expires=now + expires_s))
        return token, time_of(now + expires_s)

    def link(self, token: str) -> LinkRow | None:
        """What a token opens now; None whether it is unknown, expired or revoked, or its job is gone."""
        wanted = (
            select(links.c.job_id, links.c.tenant, links.c.expires)
            .join(jobs, jobs.c.job_id == links.c.job_id)
            .where(links.c.token_hash == hash_of(token), jobs.c.expired.is_(None), jobs.c.tenant == links.c.tenant)
        )
        with self._reading() as connection:
            now, row = clock(connection), connection.execute(wanted).first()
        if row is None or row.expires <= now:
            return None
        return LinkRow(row.job_id, row.tenant, time_of(row.expires), row.expires - now)

    def revoke_links(self, job_id: str, tenant: str) -> int:
        """Close all links of a job of this tenant; returns how many were open.

        Raises:
            JobNotFound, JobExpired: there is no such job, or not any more.
        """
        with self._writing() as connection:
            now = lock_job(connection, job_id)
            row = connection.execute(select(jobs.c.tenant, jobs.c.expired).where(jobs.c.job_id == job_id)).first()
            require_job(row, job_id, tenant)
            still = select(func.count()).select_from(links).where(links.c.job_id == job_id, links.c.expires > now)
            count = connection.scalar(still)
            connection.execute(delete(links).where(links.c.job_id == job_id))
        return count

    def prune_links(self) -> int:
        """Forget links that have expired, and those of jobs whose results are gone; returns how many."""
        with self._writing() as connection:
            gone = select(jobs.c.job_id).where(jobs.c.expired.is_not(None))
            over = or_(links.c.expires <= clock(connection), links.c.job_id.in_(gone))
            return connection.execute(delete(links).where(over)).rowcount


def hash_of(token: str) -> str:
    """What is kept of a token: its SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
