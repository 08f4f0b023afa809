"""The night's slides that `benchmarks.scale` lets a cluster work on: sizes from the real planner, tenants, arrivals."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from worker.plan import block_of, plan_tiles
from worker.types import JobSpec, SlideInfo

LEVEL0_MPP = 0.25
BIOPSIES = 0.5
"""Part of the slides that hold a biopsy; the others hold a resection."""
SIZES_PX = {"biopsy": (22_000, 0.4), "resection": (88_000, 0.3)}
"""Long side at 0.25 µm/px: median, and sigma of its logarithm."""
TISSUE = (0.2, 0.6)
"""Part of the slide that is tissue, from, to; it is one ellipse, which gives few half-empty blocks."""
LARGEST_PX = 200_000


@dataclass(frozen=True)
class Profile:
    """How a model looks at a slide.

    Attributes:
        name: for the tables.
        tile_px, mpp: edge and µm/px of its tiles; they overlap by half.
        threads: block threads a worker needs to keep one GPU of 100 tiles/s busy.
        small, large: jobs of at most, and of at least so many blocks: about a sixth of all each.
    """

    name: str
    tile_px: int
    mpp: float
    threads: int
    small: int
    large: int


TINY = Profile("tiny", 224, 1.0, 3, 6, 24)
PAPER = Profile("paper", 1024, 0.25, 10, 24, 200)


@dataclass(frozen=True)
class SlideShape:
    """What the ledger sees of a slide: for each block the tiles that are computed, and those that it owns."""

    computed: tuple[int, ...]
    owned: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.computed)


@dataclass(frozen=True)
class Order:
    """A job to come: when, whose, which slide."""

    at_s: float
    tenant: int
    shape: SlideShape


@lru_cache(maxsize=8)
def shapes(profile: Profile, count: int, seed: int) -> tuple[SlideShape, ...]:
    """Some slides, cut by the real planner; jobs are drawn from these."""
    draw = random.Random(seed)
    return tuple(_shape(profile, draw) for _ in range(count))


def _shape(profile: Profile, draw: random.Random) -> SlideShape:
    median, sigma = SIZES_PX["biopsy" if draw.random() < BIOPSIES else "resection"]
    width = min(LARGEST_PX, int(draw.lognormvariate(np.log(median), sigma)))
    height = int(width * draw.uniform(0.5, 0.9))
    info = SlideInfo(
        width, height, ((width, height),), (1.0,), LEVEL0_MPP, LEVEL0_MPP, "override", None, "generic", None
    )
    spec = JobSpec("/slide.svs", "slide", ("Where is the tumour?",), mpp=profile.mpp)
    y, x = np.mgrid[-1:1:300j, -1:1:400j]
    tissue = x**2 + y**2 < draw.uniform(*TISSUE) * 4 / np.pi
    plan = plan_tiles(info, spec, tissue, profile.tile_px, profile.mpp)
    looked_at = plan.block_keys if len(plan.block_keys) <= 40 else draw.sample(plan.block_keys, 40)
    found = [block_of(plan, key) for key in looked_at]
    pairs = [(len(block.tiles), len(block.owned)) for block in found]
    pairs += draw.choices(pairs, k=len(plan.block_keys) - len(pairs)) if len(plan.block_keys) > len(pairs) else []
    return SlideShape(tuple(computed for computed, _ in pairs), tuple(owned for _, owned in pairs))


def zipf(tenants: int) -> list[float]:
    """Shares of the load of tenants of very different size."""
    weights = [1 / (rank + 1) for rank in range(tenants)]
    return [weight / sum(weights) for weight in weights]


def night(profile: Profile, slides: int, within_s: float, seed: int, tenants: int = 20, kinds: int = 60) -> list[Order]:
    """Slides of tenants of very different size, scanned at random within a time; in the order they come."""
    draw = random.Random(seed)
    known = shapes(profile, kinds, 7)
    whose = draw.choices(range(tenants), zipf(tenants), k=slides)
    orders = [Order(draw.uniform(0, within_s), tenant, draw.choice(known)) for tenant in whose]
    return sorted(orders, key=lambda order: order.at_s)


def even(blocks: int, tiles: int) -> SlideShape:
    """A slide of equal blocks."""
    return SlideShape((tiles,) * blocks, (tiles,) * blocks)


def small_behind_large(
    tiles: int, for_s: float, rate_per_s: float, seed: int, large: int = 5, small: int = 15, backlog: int = 40
) -> list[Order]:
    """Large tenants have a backlog of 2,000-block jobs; later every tenant now and then sends one of 4 blocks.

    Args:
        tiles: of a block.
        for_s: how long small jobs go on coming.
        rate_per_s: small jobs of all tenants together.
        seed: of their arrivals.
        large, small: tenants of each kind.
        backlog: 2,000-block jobs that each large tenant has waiting from the start.
    """
    draw = random.Random(seed)
    huge, little = even(2000, tiles), even(4, tiles)
    orders = [Order(0.001 * n, tenant, huge) for n in range(backlog) for tenant in range(large)]
    at_s = 120.0
    while (at_s := at_s + draw.expovariate(rate_per_s)) < for_s:
        orders.append(Order(at_s, draw.randrange(large + small), little))
    return sorted(orders, key=lambda order: order.at_s)


def split(orders: Sequence[Order], parts: int) -> list[list[Order]]:
    """Orders by ledger: tenants are dealt out by what they ask for, the largest first, to whoever has least."""
    tiles: dict[int, int] = {}
    for order in orders:
        tiles[order.tenant] = tiles.get(order.tenant, 0) + sum(order.shape.computed)
    loads, place = [0] * parts, {}
    for tenant in sorted(tiles, key=lambda one: (-tiles[one], one)):
        place[tenant] = min(range(parts), key=lambda part: (loads[part], part))
        loads[place[tenant]] += tiles[tenant]
    return [[order for order in orders if place[order.tenant] == part] for part in range(parts)]
