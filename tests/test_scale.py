"""The simulation of a thousand GPUs: queues as in theory, claims as in the ledger, faults that lose nothing."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import update

from benchmarks.record import RESULTS, Bench
from benchmarks.scale import all_runs, jain, measure, read_costs, shorter, simulate
from benchmarks.scale_cluster import Cluster
from benchmarks.scale_costs import CARD_MODELS, INFO, PLAN, SPEC
from benchmarks.scale_events import Events, Locks, Places, Servers
from benchmarks.scale_ledger import Cost, Database, SimulatedLedger
from benchmarks.scale_load import PAPER, Order, even, night, shapes, split
from benchmarks.scale_machines import MOST_TICKETS, Machines
from worker import tasks
from worker.ledger import Ledger
from worker.ledger_schema import jobs

FREE = Database(
    {name: Cost(0.0, 0.0, 12) for name in ("claim", "renew", "commit", "commit_plan", "status", "beat")},
    statement_s=0.0, flush_s=0.0,
)  # fmt: skip
IDEAL = Machines(
    1, threads=2, tiles_per_s=1.0, batch=1, tile_tail_s=0.0, tile_decode_s=0.0, plan_s=0.0, finish_s=0.0,
    finish_block_s=0.0, status=False,
)  # fmt: skip


# Queues


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.8), (3, 0.7)])
def test_waiting_is_as_erlang_says(servers: int, load: float):
    draw, events = random.Random(1), Events()
    station = Servers(events, servers)

    def arrive(left: int) -> None:
        station.serve(draw.expovariate(1.0))
        if left:
            events.at(events.now + draw.expovariate(load * servers), arrive, left - 1)

    events.at(0.0, arrive, 300_000)
    events.run(1e9)
    offered = load * servers
    terms = [1.0]
    for k in range(1, servers + 1):
        terms.append(terms[-1] * offered / k)
    waiting = terms[-1] / (1 - load)
    probability = waiting / (sum(terms[:-1]) + waiting)
    expected_s = probability / (servers * (1 - load))
    assert station.waited_s / station.served == pytest.approx(expected_s, rel=0.06)
    assert station.busy_s / events.now / servers == pytest.approx(load, rel=0.02)


def test_locks_and_places_are_given_in_the_order_in_which_they_were_wanted():
    events, got = Events(), []
    locks, places = Locks(events), Places(events, 2)
    for number in range(3):
        events.at(number, locks.take, "row", 7, partial(got.append, ("row", number)))
        events.at(number, places.take, partial(got.append, ("place", number)))
    events.at(10.0, locks.release, "row", 7)
    events.at(11.0, places.release)
    events.at(12.0, locks.release, "row", 7)
    events.run(20.0)
    assert got == [("row", 0), ("place", 0), ("place", 1), ("row", 1), ("place", 2), ("row", 2)]
    assert locks.waited_s["row"] == pytest.approx(9.0 + 10.0)
    assert places.waited_s == pytest.approx(9.0)


# The ledger


@pytest.mark.parametrize("seed", [0, 1])
def test_claims_come_in_the_order_of_the_real_ledger(tmp_path: Path, seed: int):
    draw = random.Random(seed)
    sizes = [(draw.randrange(4), draw.randint(1, 9)) for _ in range(12)]
    waited_s = sorted((draw.uniform(1e5, 9e5) for _ in sizes), reverse=True)  # the time a test takes does not matter
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    simulated = SimulatedLedger(Events(), FREE, tenants=4)
    names = []
    for place, (tenant, blocks) in enumerate(sizes):
        names.append(ledger.create_job(SPEC, tenant=f"t{tenant:03d}", job_id=f"{place:032x}")[0])
        simulated.events.now = 1e6 - waited_s[place]
        simulated.create(tenant, even(blocks, 5))
    with ledger.engine.begin() as connection:
        for shift, job_id in zip(waited_s, names, strict=True):
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(created=jobs.c.created - shift))
    simulated.events.now = 1e6
    seen, expected = [], []
    while (work := ledger.claim("w", CARD_MODELS)) is not None:
        blocks = sizes[int(work.job_id, 16)][1]
        expected.append((int(work.job_id, 16), work.kind))
        if work.kind == "plan":
            ledger.commit_plan(work, PLAN, INFO, {f"{index}_0": 5 for index in range(blocks)})
        elif work.kind == "segment":
            ledger.commit_block(work, 5, 0, {})
        else:
            ledger.commit_finish(work, {}, "")
            ledger.close_job(work.job_id)
    ledger.close()

    def next_one(units: list) -> None:
        if units:
            seen.append((units[0].job.number, units[0].stage))
            simulated.commit(units[0], lambda _owned, _opened: simulated.claim(next_one))

    simulated.claim(next_one)
    simulated.events.run(1e7)
    assert len(expected) == sum(blocks + 2 for _, blocks in sizes)
    assert seen == expected


def test_claims_of_one_job_wait_for_its_row_and_those_that_pass_it_do_not():
    slow = replace(FREE, statement_s=0.1, connections=50)
    took = {}
    for pass_locked in (False, True):
        events = Events()
        ledger = SimulatedLedger(events, slow, tenants=1, pass_locked=pass_locked)
        for _ in range(4):
            ledger.create(0, even(1, 1))
        done: list[float] = []
        for _ in range(4):
            ledger.claim(lambda units, done=done, events=events: done.append(events.now) if units else None)
        events.run(100.0)
        assert len(done) == 4
        took[pass_locked] = max(done)
    assert took[True] < 0.6 * took[False]


def test_lifting_by_what_was_seen_counts_several_times_where_claims_meet_and_lifting_the_row_once():
    served = {}
    for lift in ("seen", "row", "arrival"):
        events = Events()
        ledger = SimulatedLedger(events, replace(FREE, statement_s=0.01), tenants=2, lift=lift, pass_locked=True)
        one, other = ledger.tenants
        one.known = other.known = True  # one has worked all night, the other is back after a while
        one.share = replace(one.share, served=1050.0, started=1000.0)
        ledger.create(0, even(1, 1))
        for _ in range(4):
            ledger.create(1, even(1, 1))
        for _ in range(4):
            ledger.claim(lambda _units: None)
        events.run(20.0)
        served[lift] = other.share.served
    assert served["seen"] > 1.9 * 1000.0
    assert max(served["row"], served["arrival"]) <= 1050.0 + 4


# The cluster


@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_workers_whose_gpu_takes_a_second_a_block_do_a_block_a_second_each(gpus: int):
    cluster = Cluster(replace(IDEAL, gpus=gpus), FREE, [Order(0.0, 0, even(40 * gpus, 1))], seed=0)
    cluster.run(1000.0)
    assert cluster.ledger.open == 0
    assert cluster.events.now == pytest.approx(40.0, abs=2.1)


def test_what_dying_workers_had_in_hand_is_done_once_by_others():
    machines = replace(IDEAL, gpus=5, death_per_hour=60.0, back_s=30.0)
    orders = [Order(float(number), number % 3, even(30, 2)) for number in range(10)]
    cluster = Cluster(machines, FREE, orders, seed=3)
    seen = cluster.run(5000.0)
    assert seen.deaths > 3 and cluster.ledger.lost > 0 and seen.isolated > 0
    assert cluster.ledger.open == 0 and not cluster.ledger.leased
    assert seen.blocks == 300 and seen.tiles == 600


def test_after_a_flush_one_sweep_a_minute_is_not_enough():
    orders = [Order(0.0, 0, even(3000, 1))]
    took = {}
    ways = {"once a sweep": {"refill_s": 0.0}, "refilled": {}, "threads go on": {"refill_s": 0.0, "chain": True}}
    for name, changes in ways.items():
        cluster = Cluster(replace(IDEAL, gpus=20, redis_lost_s=30.0, most_tickets=100, **changes), FREE, orders, seed=0)
        cluster.run(5000.0)
        assert cluster.ledger.open == 0
        took[name] = cluster.events.now
    assert took["threads go on"] == pytest.approx(150.0, abs=5.0)
    assert took["refilled"] < 1.2 * took["threads go on"], "it waits for the next sweep, then goes on"
    assert took["once a sweep"] > 2 * took["threads go on"]


def test_while_redis_is_away_workers_claim_without_tickets():
    machines = replace(IDEAL, gpus=20, redis_lost_s=30.0, redis_away_s=60.0)
    cluster = Cluster(machines, FREE, [Order(0.0, 0, even(1500, 1))], seed=0)
    cluster.run(85.0)
    assert cluster.seen.blocks > 20 * 70


def test_a_small_job_does_not_wait_for_large_ones_of_others():
    orders = [Order(0.0, 0, even(2000, 5)) for _ in range(3)] + [Order(60.0, 1, even(4, 5))]
    ended = {}
    for policy in ("fair", "oldest"):
        cluster = Cluster(replace(IDEAL, gpus=4, tiles_per_s=10.0, policy=policy), FREE, orders, seed=0)
        cluster.run(3000.0)
        job = cluster.ledger.jobs[3]
        ended[policy] = job.ended - job.created
    assert ended["fair"] < 5.0 < 100.0 < ended["oldest"]


# What is run


def test_the_same_seed_gives_the_same_figures_and_another_seed_others():
    database = read_costs(RESULTS / "scale_costs.json")
    run = next(replace(shorter(run), slides=8, until_s=120.0) for run in all_runs() if run.name == "light, as it is")
    first, again, other = (simulate(run, seed, database) for seed in (0, 0, 1))
    assert first == again != other


def test_runs_have_names_of_their_own_and_known_changes():
    runs = all_runs()
    assert len({run.name for run in runs}) == len(runs)
    database = {"db_connections", "db_cores"}
    assert {name for run in runs for name in run.changes} <= set(Machines.__dataclass_fields__) | database


def test_tenants_are_dealt_to_ledgers_whole():
    orders = night(PAPER, 200, 60.0, seed=0, kinds=6)
    parts = split(orders, 3)
    assert sorted((order for part in parts for order in part), key=lambda order: order.at_s) == orders
    owners = [{order.tenant for order in part} for part in parts]
    assert all(not one & other for one in owners for other in owners if one is not other)


def test_slides_are_cut_by_the_planner():
    found = shapes(PAPER, 6, 7)
    assert all(len(shape.computed) == len(shape.owned) == shape.blocks > 0 for shape in found)
    assert all(mine <= all_ for shape in found for mine, all_ in zip(shape.owned, shape.computed, strict=True))


def test_jain_is_one_for_equals_and_one_part_for_one_of_many():
    assert jain([3.0, 3.0, 3.0]) == 1.0
    assert jain([9.0, 0.0, 0.0]) == pytest.approx(1 / 3)


def test_the_sweeper_sends_as_many_tickets_as_the_products():
    assert MOST_TICKETS == tasks.MOST_TICKETS


@pytest.mark.slow
def test_the_whole_benchmark_in_a_hurry(tmp_path: Path):
    measurements, data = measure(Bench(seed=0, repeats=1, work=tmp_path, model="none", quick=True))
    assert [one.name for one in measurements] == [run.name for run in all_runs()]
    assert all(one.values[0] > 0 for one in measurements) and "seed" in data
