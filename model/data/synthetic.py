"""Synthetic H&E scenes with exact masks: as many as training wants, every structure at every scale and stain."""

import numpy as np

from model.data.scene import Scene
from model.data.synthetic_layout import random_layout
from model.data.synthetic_shapes import Frame
from model.data.synthetic_stain import photograph, random_stain
from model.data.synthetic_style import LABEL, LEAVES, random_style
from model.data.synthetic_tissue import paint_tissue

PARENTS = {"gland": ("normal_gland", "malignant_gland"), "tumour": ("malignant_gland", "tumour_nest")}
"""Concepts that are the union of others."""

NEVER_DRAWN = frozenset({"low_grade", "high_grade", "polyp", "serrated"})
"""Diagnoses that the generator does not make."""

MIN_SHARE = 0.008
"""A concept that covers less of a scene than this is neither present nor absent."""

MARGIN_UM = 14.0
"""Cropped off a canvas's edge, where cells that reach in from outside are missing."""

TILES_PER_EDGE = 3
"""A canvas is so many tiles wide and high; so many squared scenes are cut from it."""


def masks_of(labels: np.ndarray) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Concept masks of a label map.

    Args:
        labels: (H, W) uint8, see synthetic_style.LABEL.

    Returns:
        Concept key → (H, W) bool for what covers at least MIN_SHARE, and the keys of which there is not one pixel.
    """
    counts = np.bincount(labels.ravel(), minlength=len(LEAVES) + 1)
    least = MIN_SHARE * labels.size
    masks, absent = {}, set(NEVER_DRAWN)
    for concept in (*LEAVES, *PARENTS):
        values = [LABEL[leaf] for leaf in PARENTS.get(concept, (concept,))]
        count = counts[values].sum()
        if count >= least:
            masks[concept] = labels == values[0] if len(values) == 1 else np.isin(labels, values)
        elif count == 0:
            absent.add(concept)
    return masks, frozenset(absent)


def render_canvas(rng: np.random.Generator, width_px: int, height_px: int, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """A random window on a random world: RGB (H, W, 3) uint8 and labels (H, W) uint8."""
    margin = int(np.ceil(MARGIN_UM / mpp))
    x_px, y_px = (int(value) for value in rng.integers(0, 100_000, 2))
    frame = Frame(x_px, y_px, width_px + 2 * margin, height_px + 2 * margin, mpp)
    style, stain = random_style(rng), random_stain(rng)
    dye, labels = paint_tissue(frame, *_with_style(random_layout(rng, frame.bounds_um), style))
    inside = np.s_[margin : margin + height_px, margin : margin + width_px]
    dye = dye[inside]
    return stain.develop(dye[..., 0], dye[..., 1]), labels[inside]


def _with_style(layout: tuple, style) -> tuple:
    structures, outlines, tears = layout
    return structures, style, outlines, tears


def synthetic_scenes(
    rng: np.random.Generator, n: int, size_px: int = 256, mpp_range: tuple[float, float] = (0.5, 2.0)
) -> list[Scene]:
    """Scenes cut from shared canvases, up to nine from each: the fast way to many.

    Scenes of one canvas share stain, style and scale, and their `patient`.

    Args:
        rng: all randomness; the same generator state gives the same scenes.
        n: how many.
        size_px: edge of each.
        mpp_range: µm/px, drawn once per canvas, uniform in its logarithm.

    Returns:
        n scenes, in random order.
    """
    per_canvas = TILES_PER_EDGE**2
    scenes: list[Scene] = []
    while len(scenes) < n:
        mpp = float(np.exp(rng.uniform(*np.log(mpp_range))))
        edge = TILES_PER_EDGE * size_px
        image, labels = render_canvas(rng, edge, edge, mpp)
        canvas = f"synthetic-{int(rng.integers(1 << 48)):012x}"
        order = rng.permutation(per_canvas)[: n - len(scenes)]
        scenes += [
            _cut(rng, image, labels, divmod(int(place), TILES_PER_EDGE), size_px, mpp, canvas) for place in order
        ]
    return [scenes[index] for index in rng.permutation(n)]


def _cut(rng, image, labels, place: tuple[int, int], size_px: int, mpp: float, canvas: str) -> Scene:
    window = np.s_[place[0] * size_px : (place[0] + 1) * size_px, place[1] * size_px : (place[1] + 1) * size_px]
    masks, absent = masks_of(labels[window])
    return Scene(
        id=f"{canvas}-{place[0]}{place[1]}",
        source="synthetic",
        patient=canvas,
        image=photograph(image[window], rng),
        masks=masks,
        absent=absent,
        mpp=mpp,
        organ="synthetic",
        licence="Apache-2.0",
    )


def synthetic_scene(rng: np.random.Generator, size_px: int = 256, mpp: float = 1.0) -> Scene:
    """One synthetic H&E scene with exact masks.

    Args:
        rng: all randomness.
        size_px: edge of the square.
        mpp: µm/px; structures have sizes in µm.

    Returns:
        The scene; masks of the eight leaf concepts are disjoint, `gland` and `tumour` are unions of leaves.
    """
    image, labels = render_canvas(rng, size_px, size_px, mpp)
    return _cut(rng, image, labels, (0, 0), size_px, mpp, f"synthetic-{int(rng.integers(1 << 48)):012x}")
