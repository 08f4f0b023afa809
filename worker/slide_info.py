"""What a slide says of itself: size, resolution with its source, bounds, content hash; and nothing of a patient."""

import hashlib
import math
import os
from pathlib import Path

from worker.slide_readers import Reader
from worker.types import SlideInfo

PLAUSIBLE_MPP = (0.01, 500.0)
PLAUSIBLE_TIFF_MPP = (0.01, 20.0)
"""A TIFF's resolution tag is also where a printer's 72, 96, 300 or 600 dpi stands: 353 to 42 µm/px."""


def describe_slide(reader: Reader, path: Path, file: Path, mpp_override: float | None) -> SlideInfo:
    """Gather what a slide says of itself.

    Args:
        reader: the open slide.
        path: what was asked for: a file or a folder.
        file: the file that was opened.
        mpp_override: µm per level-0 pixel to use instead of what the slide says.
    """
    width, height = reader.level_dimensions[0]
    mpp_x, mpp_y, source = _find_mpp(reader, mpp_override)
    return SlideInfo(
        width_px0=width,
        height_px0=height,
        level_dimensions=reader.level_dimensions,
        level_downsamples=tuple(
            math.sqrt(true_factor(width, w) * true_factor(height, h)) for w, h in reader.level_dimensions
        ),
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        mpp_source=source,
        objective_power=_number(reader, "objective-power"),
        vendor=reader.vendor,
        bounds_px0=_find_bounds(reader),
        content_hash=_hash_content(path, file, _quickhash(reader)),
    )


def _find_mpp(reader: Reader, override: float | None) -> tuple[float | None, float | None, str | None]:
    """µm/px along x and y and where they come from: the first source that makes sense."""
    if override is not None:
        return float(override), float(override), "override"
    ome_x, ome_y = _stated(reader, "ome.mpp-x"), _stated(reader, "ome.mpp-y")
    if ome_x is not None and is_plausible(ome_x):
        return ome_x, ome_y if ome_y is not None and is_plausible(ome_y) else ome_x, "ome.physical-size"
    # OpenSlide fills its mpp of a generic TIFF from the resolution tags
    limits = PLAUSIBLE_TIFF_MPP if reader.vendor == "generic-tiff" else PLAUSIBLE_MPP
    mpp_x, mpp_y = _number(reader, "mpp-x"), _number(reader, "mpp-y")
    if mpp_x is not None and is_plausible(mpp_x, limits):
        mpp_y = mpp_y if mpp_y is not None and is_plausible(mpp_y, limits) else mpp_x
        # what TiffSlide opens states no mpp of its own: it takes the tags
        return mpp_x, mpp_y, "openslide.mpp" if "openslide.mpp-x" in reader.properties else "tiff.resolution"
    tiff = _tiff_resolution(reader.properties)
    if tiff is not None and all(is_plausible(value, PLAUSIBLE_TIFF_MPP) for value in tiff):
        return *tiff, "tiff.resolution"
    power = _number(reader, "objective-power")
    if power is not None and 0.5 <= power <= 200:
        return 10 / power, 10 / power, "objective-power"
    return None, None, None


def _tiff_resolution(properties: dict[str, str]) -> tuple[float, float] | None:
    unit_um = {"inch": 25400.0, "centimeter": 10000.0}.get(properties.get("tiff.ResolutionUnit", "").lower())
    try:
        x, y = float(properties["tiff.XResolution"]), float(properties["tiff.YResolution"])
    except (KeyError, ValueError):
        return None
    return (unit_um / x, unit_um / y) if unit_um and x > 0 and y > 0 else None


def _number(reader: Reader, name: str) -> float | None:
    value = _stated(reader, f"openslide.{name}")
    return _stated(reader, f"tiffslide.{name}") if value is None else value


def _stated(reader: Reader, key: str) -> float | None:
    """A property as a finite number; None where it is not one."""
    try:
        value = float(reader.properties[key])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def is_plausible(mpp: float, limits: tuple[float, float] = PLAUSIBLE_MPP) -> bool:
    """Whether a number can be a slide's µm/px."""
    return math.isfinite(mpp) and limits[0] <= mpp <= limits[1]


def _find_bounds(reader: Reader) -> tuple[int, int, int, int] | None:
    values = [_number(reader, f"bounds-{name}") for name in ("x", "y", "width", "height")]
    return None if None in values else tuple(int(value) for value in values)


def true_factor(size_px0: int, size_level: int) -> float:
    """Level-0 pixels per level pixel: the whole number that rounding hid (4443 → 2221 is 2), else the ratio."""
    ratio = size_px0 / size_level
    whole = max(1, round(ratio))
    return float(whole) if size_level in (size_px0 // whole, -(-size_px0 // whole)) else ratio


def _quickhash(reader: Reader) -> str:
    """What the reader itself makes of the pixels, where it does; of a folder in folders nothing else would tell."""
    return reader.properties.get("quickhash") or reader.properties.get("openslide.quickhash-1", "")


def _hash_content(path: Path, file: Path, quickhash: str) -> str:
    """sha256 of small files whole; of large ones, of their size and sixteen samples."""
    digest = hashlib.sha256(quickhash.encode())
    for member in sorted(path.iterdir()) if path.is_dir() else [file]:
        if not member.is_file():
            continue
        size = os.path.getsize(member)
        digest.update(size.to_bytes(8, "little"))
        with member.open("rb") as stream:
            if size <= 2**25:
                digest.update(stream.read())
                continue
            for part in range(17):
                stream.seek(min(size - 2**18, part * size // 16))
                digest.update(stream.read(2**18))
    return digest.hexdigest()
