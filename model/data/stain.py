"""Stain templates: what a stain does to a picture's colours, in six numbers, and pictures re-stained by them.

A template is [A, D]: the mean A and the standard deviation D of the three channels of CIE LAB over the *whole* picture,
glass included, as in RandStainNA: the linear map that re-stains a picture uses the very statistics that describe it, so
a re-stained picture has the template that was asked for. A tissue mask would have to be found before any stain is
known, and would part the two. LAB is the real-valued one, L in [0, 100], a and b about zero: nothing is rounded before
the last step.

Source: Shen et al. 2022, RandStainNA, §2; Reinhard et al. 2001, Color transfer between images.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

LEAST_SPREAD = 1.0
"""Of D, in LAB units: a channel that varies less shows noise, and a map that divided by it would show nothing else."""
FLATTEST = 0.2
"""Least drawn D as a share of the mean D: a flatter picture shows nothing, and a negative D would be a negative."""


@dataclass(frozen=True)
class StainStatistics:
    """How the templates of a data set are distributed: RandStainNA's M (of A) and S (of D), as normal distributions.

    Attributes:
        mean: over pictures, of [A, D]: six numbers.
        std: the same, standard deviations.
        images: how many pictures they were fitted on.

    Raises:
        ValueError: not six numbers each, or a standard deviation that is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int

    def __post_init__(self):
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 6 or not np.isfinite(values).all():
                raise ValueError(f"stain statistics: {name}={values}: accepted are six numbers, A and D of L, a, b")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"stain statistics: std={self.std}: accepted are positive numbers; fit on unlike pictures")

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "StainStatistics":
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds anything else; the message names it.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def fit_stain_statistics(images: Iterable[np.ndarray]) -> StainStatistics:
    """Mean and standard deviation, over pictures, of their templates.

    Args:
        images: (H, W, 3) uint8 RGB of any sizes; each counts once.

    Raises:
        ValueError: fewer than two pictures, or pictures all alike.
    """
    templates = [template_of(image) for image in images]
    if len(templates) < 2:
        raise ValueError(f"stain statistics: {len(templates)} pictures: accepted are two or more")
    stacked = np.stack(templates)
    return StainStatistics(tuple(stacked.mean(0)), tuple(stacked.std(0)), len(stacked))


def template_of(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB → (6,) float64: [A, D], mean and standard deviation of L, a and b."""
    return _template(_to_lab(image))


def z_score(template: np.ndarray, statistics: StainStatistics) -> np.ndarray:
    """(…, 6) template in standard deviations from the data's mean; raw, L outweighs all, and templates agree."""
    return (np.asarray(template) - np.array(statistics.mean)) / np.array(statistics.std)


def random_template(statistics: StainStatistics, rng: np.random.Generator, spread: float = 1.0) -> np.ndarray:
    """A virtual stain, drawn from the fitted distributions.

    Args:
        statistics: of the data.
        rng: the only source of chance.
        spread: widens (or narrows) the distributions; 0 gives the mean template.

    Returns:
        (6,) [A, D], D at least `FLATTEST` of its mean.
    """
    mean = np.array(statistics.mean)
    template = rng.normal(mean, spread * np.array(statistics.std))
    template[3:] = np.maximum(template[3:], FLATTEST * mean[3:])
    return template


def restain_to(image: np.ndarray, target_template: np.ndarray) -> np.ndarray:
    """Map each channel of LAB linearly, from the picture's own mean and standard deviation to the template's.

    Args:
        image: (H, W, 3) uint8 RGB.
        target_template: (6,) [A, D].

    Returns:
        (H, W, 3) uint8 RGB; colours that no screen shows are clipped.

    Raises:
        ValueError: the template is not six numbers with D ≥ 0.
    """
    target = np.asarray(target_template, np.float64)
    if target.shape != (6,) or target[3:].min() < 0:
        raise ValueError(f"template {target.tolist()}: accepted are six numbers, [A, D], with D ≥ 0")
    lab = _to_lab(image)
    own = _template(lab)
    gain = target[3:] / np.maximum(own[3:], LEAST_SPREAD)
    lab = lab * gain.astype(np.float32) + (target[:3] - own[:3] * gain).astype(np.float32)
    rgb = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return np.rint(255 * np.clip(rgb, 0, 1)).astype(np.uint8)


def rand_stain_na(image: np.ndarray, statistics: StainStatistics, rng: np.random.Generator, spread: float = 1.0):
    """RandStainNA: (H, W, 3) uint8 RGB re-stained to a random virtual template."""
    return restain_to(image, random_template(statistics, rng, spread))


def _to_lab(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _template(lab: np.ndarray) -> np.ndarray:
    mean, std = cv2.meanStdDev(lab)
    return np.concatenate([mean[:, 0], std[:, 0]])
