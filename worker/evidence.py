"""What the tiles of a region say for and against it: shares, agreement, stain, and chains that their masks contradict.

Pure functions of tile records; `worker/regions.py` finds which tiles made which region.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from model.data.stain_shift import TrainedStain, pooled_template
from model.evaluation.contradiction import ASPECTS
from worker.types import TileRecord

WEAK_AGREEMENT = 0.5
"""Tiles whose masks share less than this (intersection over union) where they overlap do not confirm each other."""

TILES_SHOWN = 20
"""Tiles of a region whose shares are told one by one; `support` names them all."""

WEAK = ("agreement", "stain", "contradiction")
"""What may speak against a region."""


def weigh_evidence(
    shares: Mapping[str, float],
    said: Mapping[str, TileRecord],
    chain_key: str,
    agreement: float | None,
    trained: TrainedStain | None,
) -> dict[str, Any]:
    """What is known of a region besides its outline and chain.

    Args:
        shares: confidence-weighted pixels of the region by tile key; 0 from tiles that saw it and stayed silent.
        said: the records of these tiles.
        chain_key: the tile whose chain the region has.
        agreement: of its overlapping tiles, in [0, 1]; None where one tile saw it.
        trained: the stains the model was trained on; None when they are not known.

    Returns:
        `tiles`, `stain`, `contradictions` and `weak`, as `Region` has them.
    """
    total = sum(shares.values()) or 1.0
    made = sorted((key for key in shares if shares[key] > 0 or key == chain_key), key=lambda key: (-shares[key], key))
    stain = pool_stain([(said[key].stain, shares[key]) for key in made], trained)
    against = count_contradictions([said[key].claims for key in made], said[chain_key].claims)
    return {
        "tiles": tuple(_tile(said[key], shares[key] / total, trained) for key in made[:TILES_SHOWN]),
        "stain": stain,
        "contradictions": against,
        "weak": weak_points(agreement, stain, against),
    }


def pool_stain(
    tiles: Sequence[tuple[Sequence[float] | None, float]], trained: TrainedStain | None
) -> dict[str, Any] | None:
    """How far the stain of some tiles together is from the stains a model was trained on.

    Args:
        tiles: (template, weight) of each; tiles without tissue have no template.
        trained: None when it is not known.

    Returns:
        `shift_sd`, the distance in standard deviations; `limit_sd`, beyond which it is far; `far`; and `tiles`, how
        many were measured. None when it is not known.
    """
    measured = [(template, weight) for template, weight in tiles if template is not None]
    if trained is None or not measured:
        return None
    shift_sd = round(trained.distance_sd(pooled_template(*zip(*measured, strict=True))), 3)
    limit_sd = round(trained.limit_sd, 3)
    return {"shift_sd": shift_sd, "limit_sd": limit_sd, "far": shift_sd > limit_sd, "tiles": len(measured)}


def count_contradictions(
    tiles: Sequence[Mapping[str, bool] | None], chain: Mapping[str, bool] | None
) -> dict[str, Any] | None:
    """How many tiles say something of their mask that the mask contradicts.

    Args:
        tiles: the claims of every tile that made a region; None where nobody looked.
        chain: the claims of the tile whose chain the region has.

    Returns:
        `chain`, what its own chain has wrong; `checked` and `contradicted`, tiles that were looked at and that have
        anything wrong; and `by_aspect`, tiles by what they have wrong. None when no tile was looked at.
    """
    checked = [claims for claims in tiles if claims is not None]
    if not checked:
        return None
    wrong = {aspect: sum(bool(claims.get(aspect)) for claims in checked) for aspect in ASPECTS}
    return {
        "chain": contradicted(chain),
        "checked": len(checked),
        "contradicted": sum(any(claims.values()) for claims in checked),
        "by_aspect": {aspect: count for aspect, count in wrong.items() if count},
    }


def contradicted(claims: Mapping[str, bool] | None) -> list[str]:
    """The aspects that a mask contradicts, in their usual order."""
    return [aspect for aspect in ASPECTS if claims and claims.get(aspect)]


def weak_points(
    agreement: float | None, stain: Mapping[str, Any] | None, against: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """What speaks against a region, of `WEAK`; what is not known speaks neither for it nor against it."""
    found = {
        "agreement": agreement is not None and agreement < WEAK_AGREEMENT,
        "stain": stain is not None and stain["far"],
        "contradiction": against is not None and bool(against["chain"]),
    }
    return tuple(name for name in WEAK if found[name])


def _tile(record: TileRecord, share: float, trained: TrainedStain | None) -> dict[str, Any]:
    """What is known of one of the tiles that made a region."""
    stain = pool_stain([(record.stain, 1.0)], trained)
    return {
        "key": record.key,
        "share": round(share, 4),
        "confidence": round(record.confidence, 4),
        "agreement": None if record.agreement is None else round(record.agreement, 4),
        "second_look": record.second_look,
        "stain_shift_sd": None if stain is None else stain["shift_sd"],
        "contradicted": None if record.claims is None else contradicted(record.claims),
    }
