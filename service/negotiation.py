"""Which of the forms we have a client would rather have."""

from collections.abc import Sequence


def choose(accept: str | None, offered: Sequence[str]) -> str | None:
    """Pick a media type by an Accept header.

    Args:
        accept: the header; None or empty accepts everything.
        offered: media types, the preferred one first.

    Returns:
        One of `offered`, or None when none is acceptable.

    Source: RFC 9110, §12.5.1.
    """
    if not accept or not accept.strip():
        return offered[0]
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    best, best_quality = None, 0.0
    for kind in offered:
        quality = _quality(kind, ranges)
        if quality > best_quality:
            best, best_quality = kind, quality
    return best


def _range(part: str) -> tuple[str, float]:
    kind, *parameters = (piece.strip() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                quality = min(max(float(value), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return kind.lower(), quality


def _quality(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Quality of the most specific range that covers the type."""
    family = kind.partition("/")[0] + "/*"
    for name in (kind, family, "*/*"):
        found = [quality for wanted, quality in ranges if wanted == name]
        if found:
            return max(found)
    return 0.0
