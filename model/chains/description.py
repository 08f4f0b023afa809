"""Measurements in words and numbers: what a writer is told of a picture, and what a reviewer sees beside it."""

from model.chains.checks import Truth
from model.chains.measures import Seen
from model.chains.words import word_for
from model.data.chains import EXEMPLAR_PHRASE
from model.data.concepts import CONCEPTS, DIAGNOSES, most_specific

_GLANDULAR = frozenset(DIAGNOSES) | {"gland"}


def name_of(key: str) -> str:
    """What a concept is called before its `<SEG>`."""
    return CONCEPTS[key].phrase if key in CONCEPTS else EXEMPLAR_PHRASE


def measurements(seen: Seen) -> list[tuple[str, str]]:
    """What was measured of one structure, as (name, value in words and numbers); what was not is left out.

    Order: number, size, location, tone, colour, nuclei, nuclear size, lumens, edges.
    """
    facts = seen.facts
    rows = [("number of pieces", f"{facts['pieces']:.0f}")]
    rows.append(("size of a piece", f"{word_for('piece_share', facts['piece_share'])}, {facts['piece_share']:.1%}"))
    rows.append(("location", f"{seen.where}, {facts['share']:.0%} of the picture"))
    if "darker" in facts:
        rows.append(("tone", f"{word_for('darker', facts['darker'])} (brightness difference {facts['darker']:+.2f})"))
    if seen.colour:
        rows.append(("colour", f"{seen.colour}" + (f"; around: {seen.colour_around}" if seen.colour_around else "")))
    if "nuclei" in facts:
        around = f"; around: {facts['nuclei_around']:.0%}" if "nuclei_around" in facts else ""
        rows.append(("nuclei", f"{word_for('nuclei', facts['nuclei'])}, {facts['nuclei']:.0%} of the tissue{around}"))
    if facts.get("diameter_px"):
        rows.append(("nuclear size", _nuclear_size(seen)))
    if "lumen" in facts and seen.key in _GLANDULAR:
        count = f", {facts['lumen_count']:.0f} of them" if facts.get("lumen_count") else ""
        rows.append(("lumens", f"{word_for('lumen', facts['lumen'])}, {facts['lumen']:.1%} of the structure{count}"))
    if "solidity" in facts:
        rows.append(("edges", f"{word_for('solidity', facts['solidity'])} (solidity {facts['solidity']:.2f})"))
    return rows


def _nuclear_size(seen: Seen) -> str:
    """Diameter, against the surroundings, how even, how many to the area."""
    facts = seen.facts
    size = f"{facts['diameter_um']:.1f} µm" if "diameter_um" in facts else f"{facts['diameter_px']:.1f} px"
    words = [f"median {size}"]
    if facts.get("diameter_px_around"):
        ratio = facts["diameter_px"] / facts["diameter_px_around"]
        words.append("as around" if 0.9 <= ratio <= 1.1 else f"{ratio:.1f} times that around")
    words.append("uneven" if facts["diameter_spread"] > 0.3 else "even")
    if "nuclei_per_mm2" in facts:
        words.append(f"{facts['nuclei_per_mm2']:,.0f} per mm²")
    return ", ".join(words)


def structures_to_tell(truth: Truth) -> list[Seen]:
    """What a description speaks of: the targets and then what else is there, parents left out."""
    keys = list(dict.fromkeys(truth.targets))
    rest = [key for key in most_specific(set(truth.seen)) if key not in keys]
    if keys:
        covered = {parent for key in keys if key in CONCEPTS for parent in CONCEPTS[key].parents}
        rest = [key for key in rest if key not in covered and not set(keys) & set(CONCEPTS[key].parents)]
    return [truth.seen[key] for key in (*keys, *rest)]


def describe(truth: Truth, organ: str = "", stain: str = "", mpp: float | None = None) -> str:
    """The measurements of a picture as a plain list, ready for a prompt.

    Args:
        truth: what is known and measured.
        organ, stain, mpp: what is known of the picture.
    """
    frame = [word for word in (organ, stain, f"{mpp:g} µm per pixel" if mpp else "") if word]
    lines = [f"Picture: {', '.join(frame) or 'histology'}."]
    for seen in structures_to_tell(truth):
        role = "target" if seen.key in truth.targets else "also there"
        lines.append(f"{role.capitalize()}: {name_of(seen.key)}")
        lines += [f"- {name}: {value}" for name, value in measurements(seen)]
    if not truth.targets:
        if truth.concept is None:
            lines.append("What is asked for was never taught.")
        else:
            lines.append(f"What is asked for is not in the picture: {name_of(truth.concept)}.")
    return "\n".join(lines)
