"""What stands there in the simulation of `benchmarks.scale`, how the product is set, and what was counted."""

from dataclasses import dataclass, field

MOST_TICKETS = 1000
"""As `worker.tasks.MOST_TICKETS`, which loads more than this file needs; a test holds them equal."""


@dataclass(frozen=True)
class Machines:
    """What stands there, and how the product is set. Times in seconds.

    Attributes:
        gpus: workers, one GPU each.
        threads: block threads of a worker.
        tiles_per_s: of a GPU, in batches of `batch` tiles; alone, a tile takes `alone_times` its share of a batch.
        storage_bytes_s, tile_bytes: what all may read together, and what a tile reads.
        tile_decode_s, tile_tail_s: per tile, of the reading threads beside the GPU; of the block's thread after it.
        plan_s, finish_s, finish_block_s: of planning, and of finishing a job: fixed, and per block.
        ticket_send_s, ticket_take_s: of Redis's one thread.
        gateways, status_row_s, retry_s, gather_s: processes; a status row in a batch; pause of a poller; of a gateway.
        sweep_s, renew_s, poll_s, lease_s, beat_s: as the product's.
        claim_most: units that one claim may lease.
        chain: a thread that had work claims again before it waits for a ticket.
        renew_together: a worker renews all its units in one transaction that locks no job.
        count_ahead: the jobs ahead of those that wait are counted, once for all that are asked for together.
        death_per_hour, back_s: of a worker; until it is replaced.
        redis_lost_s, redis_away_s: when Redis loses its tickets, and for how long it is away.
        most_tickets: that the sweeper sends at a time.
        refill_s: until it sends again where they were not enough; 0 waits for the next sweep.
        policy, assumed_units, plan_cost, pass_locked, lift: as `SimulatedLedger`.
        status: whether every open job is polled.
    """

    gpus: int
    threads: int = 2
    tiles_per_s: float = 100.0
    batch: int = 64
    alone_times: float = 5.0
    storage_bytes_s: float = 20e9
    tile_bytes: float = 5_000.0
    tile_decode_s: float = 0.000125
    tile_tail_s: float = 0.0035
    plan_s: float = 4.0
    finish_s: float = 1.0
    finish_block_s: float = 0.05
    ticket_send_s: float = 35e-6
    ticket_take_s: float = 100e-6
    gateways: int = 4
    status_row_s: float = 0.00002
    retry_s: float = 33.0
    gather_s: float = 0.1
    sweep_s: float = 60.0
    renew_s: float = 2.0
    poll_s: float = 5.0
    lease_s: float = 30.0
    beat_s: float = 10.0
    claim_most: int = 1
    chain: bool = False
    renew_together: bool = False
    count_ahead: bool = True
    death_per_hour: float = 0.0
    back_s: float = 120.0
    redis_lost_s: float | None = None
    redis_away_s: float = 0.0
    most_tickets: int = MOST_TICKETS
    refill_s: float = 1.0
    policy: str = "fair"
    assumed_units: int = 1
    plan_cost: int = 1
    pass_locked: bool = True
    lift: str = "row"
    status: bool = True


@dataclass
class Seen:
    """What the simulation counted. Times in seconds."""

    tiles: float = 0.0
    gpu_s: float = 0.0
    blocks: int = 0
    wasted: int = 0
    isolated: int = 0
    deaths: int = 0
    answers: int = 0
    answer_s: list[float] = field(default_factory=list)
    tiles_at: dict[int, float] = field(default_factory=dict)
    of_tenant: dict[int, dict[int, float]] = field(default_factory=dict)
