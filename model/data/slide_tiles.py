"""Tiles of a whole slide at chosen magnifications, only where there is tissue, without ever holding the slide.

Read through OpenSlide region by region; masks that are TIFF pyramids of one channel through tifffile, tile by tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import openslide
import tifffile
import zarr

from model.data.layout import LayoutError

LAYOUT = "a slide that OpenSlide opens and that states its µm/px (XResolution per centimetre in a TIFF)"
MPP_AT_40X = 0.25
OVERVIEW_MPP = 8.0
"""µm/px of the map by which tissue and lesions are found; the map is at least as fine."""
BLOCK_PX = 2048
"""The largest edge of what is read at once."""
UPSAMPLING = 1.1
"""A slide this much coarser than what is asked for is still taken: scanners' 40× lies between 0.22 and 0.27 µm/px."""


@dataclass(frozen=True)
class Tiling:
    """How slides are cut.

    Attributes:
        magnifications: objectives; 40 is 0.25 µm/px.
        tile_px: edge of a tile.
        min_tissue: least share of a tile that is tissue.
        per_slide: at most so many tiles of a slide at each magnification, half of them with a lesion where there are
            as many; None takes all.
        seed: of the choice.
    """

    magnifications: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)
    tile_px: int = 512
    min_tissue: float = 0.25
    per_slide: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Overview:
    """(H, W) bool of what is tissue, and how many level-0 pixels one of its pixels is wide."""

    tissue: np.ndarray
    downsample: float


class Slide:
    """An open slide with a known scale; a context manager."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._slide = openslide.OpenSlide(str(path))
        except (openslide.OpenSlideError, FileNotFoundError) as error:
            raise LayoutError(path, f"does not open as a slide ({error})", LAYOUT) from error
        stated = [self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        if None in stated:
            self._slide.close()
            raise LayoutError(path, "states no µm/px", LAYOUT)
        self.mpp = sum(map(float, stated)) / 2
        self.width, self.height = self._slide.dimensions

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slide.close()

    def window(self, x0: int, y0: int, size_px: int, downsample: float) -> np.ndarray:
        """(size_px, size_px, 3) uint8 RGB from level-0 (x0, y0) on, by area from the nearest finer level."""
        level = self._slide.get_best_level_for_downsample(downsample * 1.01)
        edge = max(round(size_px * downsample / self._slide.level_downsamples[level]), 1)
        region = self._region(x0, y0, level, (edge, edge))
        if edge == size_px:
            return region
        how = cv2.INTER_AREA if edge > size_px else cv2.INTER_LINEAR
        return cv2.resize(region, (size_px, size_px), interpolation=how)

    def _region(self, x0: int, y0: int, level: int, size: tuple[int, int]) -> np.ndarray:
        """RGB of a region of a level; what the file leaves out is glass."""
        try:
            rgba = np.array(self._slide.read_region((x0, y0), level, size))
        except openslide.OpenSlideError as error:
            raise LayoutError(self.path, f"is broken at ({x0}, {y0}) ({error})", LAYOUT) from error
        rgb = rgba[..., :3]
        rgb[rgba[..., 3] == 0] = 255
        return rgb

    def overview(self) -> Overview:
        """Where there is tissue, from blocks of the coarsest level that is fine enough."""
        wanted = max(OVERVIEW_MPP / self.mpp, 1.0)
        level = self._slide.get_best_level_for_downsample(wanted)
        step = self._slide.level_downsamples[level]
        factor = max(int(wanted / step + 1e-6), 1)
        width, height = (length // factor for length in self._slide.level_dimensions[level])
        rgb = np.full((max(height, 1), max(width, 1), 3), 255, np.uint8)
        edge = BLOCK_PX // factor
        for y in range(0, height, edge):
            for x in range(0, width, edge):
                size = (min(edge, width - x), min(edge, height - y))
                corner = (round(x * factor * step), round(y * factor * step))
                block = self._region(*corner, level, (size[0] * factor, size[1] * factor))
                rgb[y : y + size[1], x : x + size[0]] = cv2.resize(block, size, interpolation=cv2.INTER_AREA)
        return Overview(tissue_of(rgb), factor * step)


def tissue_of(rgb: np.ndarray) -> np.ndarray:
    """Coloured pixels, (H, W) bool: Otsu's threshold on max − min of RGB, kept where stained and clean slides part.

    The threshold stays between 15 and 40 of 255, so that a slide without glass, or all of glass, is not cut in two.
    """
    chroma = cv2.GaussianBlur(rgb.max(axis=2) - rgb.min(axis=2), (0, 0), 1.0)
    threshold, _ = cv2.threshold(chroma, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return chroma > np.clip(threshold, 15, 40)


class MaskSlide:
    """A mask as a TIFF pyramid of one channel, as large as its slide; the tumour is one of its values."""

    def __init__(self, path: Path, width: int, tumour: int | None = None):
        """Open a mask.

        Args:
            path: of the TIFF.
            width: of the slide's level 0.
            tumour: the value of tumour pixels; None takes the highest that the mask holds, as there are masks of
                0 and 1, of 0 and 255, and of 0, 1 (other tissue) and 2.
        """
        self.path, self.width = path, width
        try:
            self._tiff = tifffile.TiffFile(path)
            self._levels = [zarr.open(page.aszarr(), mode="r") for page in _pages(self._tiff)]
        except (OSError, ValueError) as error:
            raise LayoutError(path, f"does not open as a mask ({error})", "a TIFF of one channel") from error
        if not self._levels or self._levels[0].ndim != 2:
            raise LayoutError(path, "has several channels", "a TIFF of one channel")
        self.value = tumour or max(int(block.max()) for _, _, block in self._blocks(4.0))
        if not self.value:
            raise LayoutError(path, "is empty, yet its slide holds tumour", "a mask that is not 0 everywhere")

    def __enter__(self) -> "MaskSlide":
        return self

    def __exit__(self, *_: object) -> None:
        self._tiff.close()

    def window(
        self, x0: float, y0: float, size: tuple[int, int], downsample: float, all_touched: bool = False
    ) -> np.ndarray:
        """As `Lesions.window`."""
        if all_touched:
            return self._touched(size, downsample)
        level, step = self._level(downsample)
        x, y = round(x0 / step), round(y0 / step)
        height, width = (max(round(length * downsample / step), 1) for length in size)
        found = np.zeros((height, width), np.float32)
        part = level[max(y, 0) : y + height, max(x, 0) : x + width] == self.value
        found[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]] = part
        return cv2.resize(found, size[::-1], interpolation=cv2.INTER_AREA) >= 0.5

    def _touched(self, size: tuple[int, int], downsample: float) -> np.ndarray:
        """The whole slide's map of where there is any tumour, by the largest value in each cell."""
        touched = np.zeros(size, bool)
        step = self._level(4.0)[1]
        for x, y, block in self._blocks(4.0):
            rows, columns = np.nonzero(block == self.value)
            rows, columns = ((np.add(place, corner) * step / downsample).astype(int) for place, corner in
                             ((rows, y), (columns, x)))  # fmt: skip
            inside = (rows < size[0]) & (columns < size[1])
            touched[rows[inside], columns[inside]] = True
        return touched

    def _level(self, downsample: float) -> tuple[zarr.Array, float]:
        """The coarsest level that is at least as fine, and its own downsample."""
        steps = [self.width / level.shape[1] for level in self._levels]
        place = max(i for i, step in enumerate(steps) if step <= downsample * 1.01 or i == 0)
        return self._levels[place], steps[place]

    def _blocks(self, downsample: float) -> Iterator[tuple[int, int, np.ndarray]]:
        """Corner and pixels of every block of a level."""
        level, _ = self._level(downsample)
        for y in range(0, level.shape[0], BLOCK_PX):
            for x in range(0, level.shape[1], BLOCK_PX):
                yield x, y, level[y : y + BLOCK_PX, x : x + BLOCK_PX]


def _pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The levels, finest first, whether they lie side by side or as sub-IFDs; labels and thumbnails left out."""
    pages = list(tiff.pages)
    if pages[0].pages:
        pages = [pages[0], *pages[0].pages]
    tiled = [page for page in pages if page.is_tiled] or pages[:1]
    return sorted(tiled, key=lambda page: -page.shape[1])


@dataclass(frozen=True)
class Tile:
    """A tile to read: its corner in level-0 pixels, level-0 pixels per pixel, and whether a lesion touches it."""

    x0: int
    y0: int
    downsample: float
    lesion: bool


def plan_tiles(
    slide: Slide, overview: Overview, lesion: np.ndarray, magnification: float, tiling: Tiling
) -> list[Tile]:
    """The tiles of one magnification, row by row; those that the slide's edge would cut are left out.

    Args:
        slide: gives the scale and the size.
        overview: where there is tissue.
        lesion: the overview's shape, bool: where a lesion touches.
        magnification: of the tiles.
        tiling: how to cut and choose.

    Raises:
        LayoutError: the slide is coarser than this magnification.
    """
    downsample = MPP_AT_40X * 40 / magnification / slide.mpp
    if downsample * UPSAMPLING < 1:
        accepted = f"magnifications up to {MPP_AT_40X * 40 / slide.mpp:.3g}"
        raise LayoutError(slide.path, f"is {slide.mpp:.3g} µm/px, too coarse for {magnification:g}×", accepted)
    edge = tiling.tile_px * downsample
    grid = [int(length / edge + 1e-6) for length in (slide.height, slide.width)]
    tissue, touched = (_shares(part, edge / overview.downsample, grid) for part in (overview.tissue, lesion))
    tiles = [
        Tile(round(column * edge), round(row * edge), downsample, bool(touched[row, column] > 0))
        for row, column in np.argwhere(tissue >= tiling.min_tissue).tolist()
    ]
    return _choose(tiles, tiling, f"{slide.path.stem}/{magnification:g}")


def _shares(part: np.ndarray, edge: float, grid: list[int]) -> np.ndarray:
    """Mean of a bool map over every square of a grid, a cell that is cut counting whole.

    Args:
        part: (H, W) bool.
        edge: of a square, in the map's cells.
        grid: rows and columns of squares.

    Returns:
        (rows, columns) float64; 0 for a square off the map's edge, whose last cells may be cut.
    """
    integral = cv2.integral(part.astype(np.uint8))
    starts, ends = [], []
    for squares, length in zip(grid, part.shape, strict=True):
        steps = np.arange(squares)
        starts.append(np.minimum((steps * edge + 1e-6).astype(int), length))
        ends.append(np.clip(np.ceil((steps + 1) * edge - 1e-6).astype(int), 0, length))
    (y0, x0), (y1, x1) = starts, ends
    upper, lower = integral[y0], integral[y1]
    total = lower[:, x1] - upper[:, x1] - lower[:, x0] + upper[:, x0]
    return total / np.maximum(np.outer(y1 - y0, x1 - x0), 1)


def _choose(tiles: list[Tile], tiling: Tiling, name: str) -> list[Tile]:
    """At most `per_slide`, half with a lesion as far as there are, the same ones every time."""
    count = tiling.per_slide
    if count is None or len(tiles) <= count:
        return tiles
    rng = np.random.default_rng([tiling.seed, *name.encode()])
    with_lesion = rng.permutation([i for i, tile in enumerate(tiles) if tile.lesion]).astype(int)
    without = rng.permutation([i for i, tile in enumerate(tiles) if not tile.lesion]).astype(int)
    first = min(len(with_lesion), max(count // 2, count - len(without)))
    kept = sorted([*with_lesion[:first], *without[: count - first]])
    return [tiles[i] for i in kept]
