"""A whole synthetic slide with its ground truth: the scenes' tissue, laid out as one section of a colon cancer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile

from model.data.synthetic import PARENTS
from model.data.synthetic_glands import Structure
from model.data.synthetic_section import lay_out_section
from model.data.synthetic_shapes import Frame
from model.data.synthetic_stain import random_stain
from model.data.synthetic_style import LABEL, LEAVES, plain_style
from model.data.synthetic_tissue import paint_tissue

TILE_PX = 256
STRIP_PX = 2 * TILE_PX
"""Rows rendered at a time."""

MARGIN_PX = 40
"""Rendered around a strip and thrown away; a multiple of the renderer's coarse grid."""

OPTICS_SIGMA_PX = 0.6
"""Blur of a scanner's optics."""

MIN_EDGE_PX = 512
JPEG_QUALITY = 90
TRUTH_MPP = 1.0


@dataclass(frozen=True)
class SyntheticSlide:
    """A slide that was written, and the truth about it.

    Attributes:
        path: the pyramidal TIFF.
        truth_path: the .npz beside it, see `read_truth`.
        seed: what it was made from.
        width_px, height_px: of level 0.
        mpp: µm/px of level 0.
        truth_mpp: µm/px of the masks.
        truth_shape: (H, W) of the masks.
        packed: concept key → mask, packed by np.packbits in raster order.
    """

    path: Path
    truth_path: Path
    seed: int
    width_px: int
    height_px: int
    mpp: float
    truth_mpp: float
    truth_shape: tuple[int, int]
    packed: dict[str, np.ndarray]

    def mask(self, concept: str) -> np.ndarray:
        """Where a concept is: (H, W) bool at `truth_mpp`, first pixel at the slide's first.

        Raises:
            KeyError: not a concept that the generator draws.
        """
        height, width = self.truth_shape
        return np.unpackbits(self.packed[concept], count=height * width).view(bool).reshape(height, width)


def write_synthetic_slide(
    path: str | Path, seed: int = 0, width_px: int = 8192, height_px: int = 6144, mpp: float = 0.5
) -> SyntheticSlide:
    """Write a synthetic H&E slide, tiled and pyramidal, with ground truth beside it.

    Args:
        path: of the TIFF; the truth goes to the same name with `.npz`.
        seed: of everything; the same arguments give the same bytes.
        width_px, height_px: of level 0.
        mpp: µm/px of level 0; structures have sizes in µm, the section fills the slide whatever its size.

    Returns:
        The slide and its masks at 1 µm/px.

    Raises:
        ValueError: a slide smaller than MIN_EDGE_PX, or an mpp outside 0.1 to 4.
    """
    if min(width_px, height_px) < MIN_EDGE_PX:
        raise ValueError(f"a synthetic slide is at least {MIN_EDGE_PX} px wide and high, not {width_px} x {height_px}")
    if not 0.1 <= mpp <= 4:
        raise ValueError(f"mpp of a synthetic slide is 0.1 to 4 µm/px, not {mpp}")
    path = Path(path)
    rng = np.random.default_rng(seed)
    structures, outlines, tears = lay_out_section(rng, width_px * mpp, height_px * mpp)
    truth = np.zeros((round(height_px * mpp / TRUTH_MPP), round(width_px * mpp / TRUTH_MPP)), np.uint8)
    strips = _strips(rng, structures, outlines, tears, (height_px, width_px), mpp, seed, truth)
    half = np.zeros((height_px // 2, width_px // 2, 3), np.uint8)
    unfinished = path.with_name(path.name + ".part")
    with tifffile.TiffWriter(unfinished, bigtiff=False) as tiff:
        _write_level(tiff, _tiles(strips, half), (height_px, width_px, 3), mpp, 0)
        level, reduced = 1, half
        while True:
            _write_level(tiff, _tiles([reduced], None), reduced.shape, mpp * height_px / reduced.shape[0], level)
            if max(reduced.shape) <= 2 * TILE_PX:
                break
            reduced = cv2.resize(reduced, (reduced.shape[1] // 2, reduced.shape[0] // 2), interpolation=cv2.INTER_AREA)
            level += 1
    packed = {leaf: np.packbits(truth == LABEL[leaf]) for leaf in LEAVES}
    packed |= {
        parent: np.packbits(np.isin(truth, [LABEL[leaf] for leaf in leaves])) for parent, leaves in PARENTS.items()
    }
    unfinished.replace(path)
    truth_path = path.with_suffix(".npz")
    frame = np.array([TRUTH_MPP, *truth.shape, mpp, width_px, height_px, seed], dtype=np.float64)
    np.savez_compressed(truth_path, frame=frame, **packed)
    return SyntheticSlide(path, truth_path, seed, width_px, height_px, mpp, TRUTH_MPP, truth.shape, packed)


def read_truth(path: str | Path) -> SyntheticSlide:
    """The truth about a slide that `write_synthetic_slide` wrote, from the path of the slide or of its .npz."""
    truth_path = Path(path).with_suffix(".npz")
    with np.load(truth_path) as stored:
        truth_mpp, height, width, mpp, width_px, height_px, seed = stored["frame"].tolist()
        packed = {concept: stored[concept] for concept in stored.files if concept != "frame"}
    shape = (int(height), int(width))
    tiff = truth_path.with_suffix(Path(path).suffix if Path(path).suffix != ".npz" else ".tif")
    return SyntheticSlide(tiff, truth_path, int(seed), int(width_px), int(height_px), mpp, truth_mpp, shape, packed)


def _strips(
    rng: np.random.Generator,
    structures: Sequence[Structure],
    outlines: Sequence[np.ndarray],
    tears: Sequence[np.ndarray],
    shape: tuple[int, int],
    mpp: float,
    seed: int,
    truth: np.ndarray,
) -> Iterator[np.ndarray]:
    """Render level 0 strip by strip, (STRIP_PX, W, 3) uint8 each, and write the labels into `truth` on the way."""
    height_px, width_px = shape
    style, stain = plain_style(int(rng.integers(1 << 62))), random_stain(rng, spread=0.35)
    rows = ((np.arange(truth.shape[0]) + 0.5) * TRUTH_MPP / mpp).astype(int).clip(0, height_px - 1)
    columns = ((np.arange(truth.shape[1]) + 0.5) * TRUTH_MPP / mpp).astype(int).clip(0, width_px - 1)
    for top in range(0, height_px, STRIP_PX):
        height = min(STRIP_PX, height_px - top)
        frame = Frame(-MARGIN_PX, top - MARGIN_PX, width_px + 2 * MARGIN_PX, height + 2 * MARGIN_PX, mpp)
        dye, labels = paint_tissue(frame, structures, style, outlines, tears)
        picture = cv2.GaussianBlur(stain.develop(dye[..., 0], dye[..., 1]), (5, 5), OPTICS_SIGMA_PX)
        inside = np.s_[MARGIN_PX : MARGIN_PX + height, MARGIN_PX : MARGIN_PX + width_px]
        labels = labels[inside]
        mine = (rows >= top) & (rows < top + height)
        truth[mine] = labels[rows[mine] - top][:, columns]
        yield picture[inside]


def _tiles(strips: Sequence[np.ndarray] | Iterator[np.ndarray], half: np.ndarray | None) -> Iterator[np.ndarray]:
    """Cut strips into TIFF tiles, padded at the edges; where given, fill `half` with the next level."""
    top = 0
    for strip in strips:
        height, width = strip.shape[:2]
        if half is not None:
            rows = min(height // 2, half.shape[0] - top // 2)
            even = strip[: 2 * rows, : 2 * half.shape[1]]
            half[top // 2 : top // 2 + rows] = cv2.resize(even, (half.shape[1], rows), interpolation=cv2.INTER_AREA)
        top += height
        for y in range(0, height, TILE_PX):
            for x in range(0, width, TILE_PX):
                tile = strip[y : y + TILE_PX, x : x + TILE_PX]
                bottom, right = TILE_PX - tile.shape[0], TILE_PX - tile.shape[1]
                if bottom or right:
                    tile = cv2.copyMakeBorder(tile, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
                yield np.ascontiguousarray(tile)


def _write_level(tiff: tifffile.TiffWriter, tiles: Iterator[np.ndarray], shape: tuple, mpp: float, level: int) -> None:
    tiff.write(
        tiles,
        shape=shape,
        dtype=np.uint8,
        tile=(TILE_PX, TILE_PX),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": JPEG_QUALITY},
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
        subfiletype=1 if level else 0,
        metadata=None,
        software="SlideReason synthetic slide",
    )
