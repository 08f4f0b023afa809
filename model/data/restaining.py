"""Pictures as laboratories would have stained them that no training saw: to measure how far a model bears it.

Two ways, each plausible where the other is not: the statistics of LAB are brought to a template's, as between scanners
and protocols (Reinhard et al. 2001; Shen et al. 2022, RandStainNA), and the amounts of haematoxylin and eosin are
scaled after colour deconvolution, as between staining times (Ruifrok & Johnston 2001; Tellez et al. 2018). Glass stays
glass.
"""

from dataclasses import dataclass

import cv2
import numpy as np

GLASS, TISSUE = 243, 205
"""Darkest channel from which a pixel is glass, and up to which it is tissue; between them it is a mixture."""
MIN_SPREAD = 1.0
"""Least standard deviation that is stretched: of a flat picture nothing can be told."""


@dataclass(frozen=True)
class Template:
    """Mean and standard deviation of tissue in OpenCV's 8-bit LAB (L 0 to 255, a and b around 128).

    Attributes:
        mean, spread: of L, a and b.
    """

    mean: tuple[float, float, float]
    spread: tuple[float, float, float]


@dataclass(frozen=True)
class Laboratory:
    """One way to stain, away from all that training shows.

    Attributes:
        name: what it looks like.
        template: what LAB is brought to; None leaves it.
        dyes: factors of haematoxylin and eosin; None leaves them.
    """

    name: str
    template: Template | None = None
    dyes: tuple[float, float] | None = None


LABORATORIES: tuple[Laboratory, ...] = (
    Laboratory("faded", Template((192, 145, 112), (22, 6, 6))),
    Laboratory("overstained", Template((72, 163, 86), (32, 11, 13))),
    Laboratory("lavender", Template((152, 146, 86), (38, 8, 9))),
    Laboratory("salmon", Template((158, 163, 124), (38, 12, 9))),
    Laboratory("aged", Template((136, 143, 137), (40, 8, 9))),
    Laboratory("slate", Template((140, 137, 104), (42, 6, 8))),
    Laboratory("blue", dyes=(1.7, 0.35)),
    Laboratory("red", dyes=(0.5, 1.35)),
)
"""EBHI's tissue has L 115 ± 12, a 165 ± 11, b 89 ± 12 over its pictures, and training shifts them by ± 14, 7 and 7:
every template is more than two of the combined deviations away in some channel (tested)."""


def tissue_share(image: np.ndarray) -> np.ndarray:
    """(H, W) float32: how far a pixel is tissue, from 0 (glass) to 1, of an (H, W, 3) uint8 RGB image."""
    darkest = cv2.GaussianBlur(image.min(axis=2), (0, 0), 1.0).astype(np.float32)
    return np.clip((GLASS - darkest) / (GLASS - TISSUE), 0, 1)


def statistics(image: np.ndarray) -> Template | None:
    """Mean and deviation of LAB over the tissue of an (H, W, 3) uint8 RGB image; None where there is none."""
    weight = tissue_share(image)
    if weight.sum() < 1:
        return None
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    mean = np.average(lab.reshape(-1, 3), axis=0, weights=weight.reshape(-1))
    spread = np.sqrt(np.average((lab - mean).reshape(-1, 3) ** 2, axis=0, weights=weight.reshape(-1)))
    return Template(tuple(mean.tolist()), tuple(spread.tolist()))


def transfer(image: np.ndarray, template: Template) -> np.ndarray:
    """Bring the tissue's mean and deviation of L, a and b to a template's.

    Args:
        image: (H, W, 3) uint8 RGB.
        template: what they shall be; colours that no RGB has are clipped, so they are met nearly.

    Returns:
        (H, W, 3) uint8 RGB; a picture without tissue as it was.
    """
    own = statistics(image)
    if own is None:
        return image.copy()
    weight = tissue_share(image)[..., None]
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    factor = np.array(template.spread) / np.maximum(own.spread, MIN_SPREAD)
    moved = (lab - np.array(own.mean)) * factor + np.array(template.mean)
    mixed = np.clip(weight * moved + (1 - weight) * lab, 0, 255)
    return cv2.cvtColor(np.round(mixed).astype(np.uint8), cv2.COLOR_LAB2RGB)


def scale_dyes(image: np.ndarray, haematoxylin: float, eosin: float) -> np.ndarray:
    """Multiply the amounts of the two dyes; what they do not explain stays as it is.

    Args:
        image: (H, W, 3) uint8 RGB.
        haematoxylin, eosin: factors, 1 leaves a dye as it is.

    Raises:
        ValueError: a factor is negative.
    """
    if haematoxylin < 0 or eosin < 0:
        raise ValueError(f"factors {haematoxylin} and {eosin}: no dye can be less than none, 0 and more is accepted")
    from skimage.color import hed2rgb, rgb2hed  # needed by measurements alone

    amounts = rgb2hed(image)  # never below 0, so that not every colour comes back from it: the change is applied
    before, after = (np.maximum(hed2rgb(amounts * np.array(by)), 1e-3) for by in ((1, 1, 1), (haematoxylin, eosin, 1)))
    return np.round(np.clip(image * (after / before), 0, 255)).astype(np.uint8)


def perturb_dyes(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scale both dyes by chance, log-evenly between 1 / (1 + strength) and 1 + strength (Tellez et al. 2018)."""
    reach = np.log1p(strength)
    return scale_dyes(image, *np.exp(rng.uniform(-reach, reach, 2)).tolist())


def restain(image: np.ndarray, laboratory: Laboratory, rng: np.random.Generator, scatter: float = 1.0) -> np.ndarray:
    """A picture as one laboratory would have stained it; no two of its slides are the same.

    Args:
        image: (H, W, 3) uint8 RGB.
        laboratory: whose.
        rng: of the slide within its laboratory: ± 4 in L, ± 2 in a and b, ± 5 % of a dye.
        scatter: factor of these; 0 gives the laboratory's own template.
    """
    out = image
    if laboratory.template is not None:
        template = laboratory.template
        shift = rng.normal(0, 1, 3) * np.array([4, 2, 2]) * scatter
        out = transfer(out, Template(tuple((np.array(template.mean) + shift).tolist()), template.spread))
    if laboratory.dyes is not None:
        factors = np.array(laboratory.dyes) * np.exp(rng.normal(0, 0.05 * scatter, 2))
        out = scale_dyes(out, *factors.tolist())
    return out
