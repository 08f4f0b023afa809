"""OME-TIFF: the series that is the slide, its levels in SubIFDs, and its physical size."""

import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from worker.errors import SlideUnreadable
from worker.slide_readers import MAX_PLAIN_PX, reason, to_rgb
from worker.tiff_head import GREY, RGB, YCBCR

JPEG = 7
MAX_XML_CHARS = 2**24
ACCEPTED = "one plane of 8-bit RGB, RGBA or grey (brightfield) is read"
ASIDE = ("label", "macro", "thumbnail", "overview")
"""Names of the pictures that scanners store beside the slide."""

UM_PER_UNIT = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4,
    "in": 25_400.0,
}  # fmt: skip
"""OME's units of length; both letters that look like µ are written. `pixel` and `reference frame` say nothing."""


class OmeTiffReader:
    """One series of an OME-TIFF. Thread-safe; holds no more than the pieces that a frame touches."""

    vendor = "ome-tiff"

    def __init__(self, path: Path):
        import zarr  # slow to import, and most slides are no OME-TIFF

        self._path = path
        self._lock = threading.Lock()
        # OME-XML may name other files; none but this one is opened
        self._tiff = tifffile.TiffFile(path, _multifile=False)
        try:
            series = _find_slide(self._tiff)
            self._planar = series.axes == "SYX"
            self.level_dimensions = tuple(_size(level) for level in series.levels)
            for level in series.levels:
                piece = int(np.prod(level.keyframe.chunks))
                if piece > 4 * MAX_PLAIN_PX:
                    raise SlideUnreadable(f"the TIFF has pieces of {piece} values; at most {4 * MAX_PLAIN_PX} are read")
            self._arrays = [zarr.open_array(series.aszarr(level=n), mode="r") for n in range(len(series.levels))]
            self.properties = _physical_size(self._tiff.ome_metadata, self.level_dimensions[0])
        except BaseException:
            self._tiff.close()
            raise

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        rows, cols = slice(y, y + height), slice(x, x + width)
        try:
            with self._lock:
                array = self._arrays[level]
                pixels = np.asarray(array[:, rows, cols] if self._planar else array[rows, cols])
        except Exception as error:  # tifffile and its codecs raise whatever the broken bytes lead them into
            raise SlideUnreadable(
                f"the slide's data is broken at level {level}, ({x}, {y}): {reason(error, self._path)}"
            ) from error
        return to_rgb(pixels.transpose(1, 2, 0) if self._planar else pixels)

    def close(self) -> None:
        self._tiff.close()


def _find_slide(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The largest series that is a brightfield picture and is not called a label or the like."""
    named = [series for series in tiff.series if not any(word in series.name.lower() for word in ASIDE)]
    fitting = [series for series in named or tiff.series if _is_brightfield(series)]
    if not fitting:
        found = ", ".join(f"{series.axes} {series.shape} {series.dtype}" for series in tiff.series[:4]) or "no picture"
        raise SlideUnreadable(f"the OME-TIFF holds {found}; {ACCEPTED}")
    return max(fitting, key=lambda series: int(np.prod(_size(series))))


def _is_brightfield(series: tifffile.TiffPageSeries) -> bool:
    page = series.keyframe
    # without JPEG nobody would turn YCbCr into RGB
    if series.dtype != np.uint8 or page.photometric not in (GREY, RGB, *([YCBCR] if page.compression == JPEG else [])):
        return False
    samples = series.shape[series.axes.index("S")] if "S" in series.axes else 1
    return series.axes in ("YX", "YXS", "SYX") and samples in (1, 3, 4)


def _size(series: tifffile.TiffPageSeries) -> tuple[int, int]:
    return int(series.shape[series.axes.index("X")]), int(series.shape[series.axes.index("Y")])


def _physical_size(xml: str | None, size: tuple[int, int]) -> dict[str, str]:
    """`ome.mpp-x` and `ome.mpp-y` of the image of this size; nothing where it states none in a unit of length."""
    if not xml or len(xml) > MAX_XML_CHARS or "<!DOCTYPE" in xml:
        return {}
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return {}
    for pixels in root.findall(".//{*}Pixels"):
        if (pixels.get("SizeX"), pixels.get("SizeY")) == (str(size[0]), str(size[1])):
            return {f"ome.mpp-{axis.lower()}": repr(value) for axis in "XY" if (value := _um(pixels, axis)) is not None}
    return {}


def _um(pixels: ElementTree.Element, axis: str) -> float | None:
    factor = UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        return float(pixels.get(f"PhysicalSize{axis}", "")) * factor if factor else None
    except ValueError:
        return None
