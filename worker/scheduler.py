"""Whose work is next: a pure policy, asked by the ledger at every claim and by the simulation in `benchmarks.scale`.

    priority        the highest that has ready work
    tenant          start-time fair queueing: the least served, measured in tiles; being away earns no credit
    job             within the tenant, the highest response ratio: seconds waited per unit of work left

So one tenant's thousand slides do not hold up another's one, and a 2,000-block job does not hold up a 4-block one of
the same tenant; equal jobs run in the order they came, one after the other, and no job waits for ever, since its ratio
grows as it waits.

Source: P. Goyal, H. Vin, H. Cheng, Start-time Fair Queuing, SIGCOMM 1996; P. B. Hansen, An analysis of response ratio
scheduling, IFIP 1971.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TenantShare:
    """What a tenant has had.

    Attributes:
        tenant: its name.
        served: finish tag: the virtual time, in tiles, at which its next unit may start.
        started: start tag of the unit it was given last.
    """

    tenant: str
    served: float = 0.0
    started: float = 0.0


@dataclass(frozen=True)
class WaitingJob:
    """A job with units that can be claimed.

    Attributes:
        job_id: its id.
        created: seconds since 1970.
        units_left: units that are not done, at least 1; 1 before it was planned.
    """

    job_id: str
    created: float
    units_left: int


def virtual_time(shares: Iterable[TenantShare]) -> float:
    """The start tag of the unit that was given out last, in tiles: where a tenant that was away begins."""
    return max((share.started for share in shares), default=0.0)


def order_tenants(shares: Sequence[TenantShare]) -> list[TenantShare]:
    """Tenants in the order in which they should be served next; the name settles ties."""
    now = virtual_time(shares)
    return sorted(shares, key=lambda share: (max(share.served, now), share.served, share.tenant))


def charge(share: TenantShare, now: float, cost: float) -> TenantShare:
    """The tenant's share after it was given a unit.

    Args:
        share: before.
        now: `virtual_time` of all shares.
        cost: tiles of the unit.
    """
    start = max(share.served, now)
    return TenantShare(share.tenant, served=start + cost, started=start)


def response_ratio(job: WaitingJob, now_s: float) -> float:
    """Seconds waited per unit of work left."""
    return max(0.0, now_s - job.created) / max(1, job.units_left)


def order_jobs(jobs: Iterable[WaitingJob], now_s: float) -> list[WaitingJob]:
    """A tenant's jobs of one priority in the order in which they should be served; age settles ties."""
    return sorted(jobs, key=lambda job: (-response_ratio(job, now_s), job.created, job.job_id))
