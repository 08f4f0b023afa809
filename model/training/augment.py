"""What a picture may look like besides: turned, zoomed, stained otherwise, blurred. Masks follow the picture."""

import cv2
import numpy as np

from model.data.scene import Scene

MIN_SHARE = 0.008
"""A structure with less of the tile than this is neither present nor absent."""


def random_view(
    scene: Scene, size_px: int, rng: np.random.Generator, zoom: tuple[float, float], turn: bool = True
) -> tuple[np.ndarray, dict[str, np.ndarray], frozenset[str], float]:
    """A random square view of a scene.

    Args:
        scene: any size.
        size_px: edge of the view.
        rng: the only source of chance.
        zoom: range of scene pixels per view pixel, drawn log-uniformly.
        turn: also turn by up to 20° and shear the aspect a little.

    Returns:
        image (S, S, 3) uint8, present masks by concept, absent concepts, and the zoom that was drawn.
    """
    height, width = scene.image.shape[:2]
    factor = float(np.exp(rng.uniform(np.log(zoom[0]), np.log(zoom[1]))))
    angle = np.deg2rad(rng.uniform(-20, 20)) if turn and rng.random() < 0.5 else 0.0
    stretch = np.exp(rng.uniform(-0.08, 0.08)) if turn else 1.0
    slack = [max(0.0, side - size_px * factor) for side in (width, height)]
    centre = [side / 2 + rng.uniform(-0.5, 0.5) * (room + 0.1 * size_px * factor) for side, room in
              zip((width, height), slack, strict=True)]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    matrix = np.array([[cos * stretch, -sin], [sin, cos / stretch]])
    flip = np.array([[rng.choice((-1, 1)), 0], [0, rng.choice((-1, 1))]])
    swap = np.array([[0, 1], [1, 0]]) if rng.random() < 0.5 else np.eye(2)
    matrix = matrix @ flip @ swap
    half = (size_px - 1) / 2
    affine = np.hstack([matrix, (np.array(centre) - 0.5 - matrix @ [half, half])[:, None]]).astype(np.float32)

    def warp(array: np.ndarray, how: int) -> np.ndarray:
        return cv2.warpAffine(
            array, affine, (size_px, size_px), flags=how | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
        )

    source = cv2.blur(scene.image, (2, 2)) if factor > 1.6 else scene.image
    image = warp(source, cv2.INTER_LINEAR)
    warped = {id(m): warp(m.astype(np.uint8), cv2.INTER_NEAREST) > 0 for m in scene.masks.values()}
    masks = {key: warped[id(m)] for key, m in scene.masks.items()}
    masks = {key: m for key, m in masks.items() if m.mean() >= MIN_SHARE}
    return image, masks, scene.absent, factor


def restain(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Random channel-wise linear transform in LAB, brightness, blur, noise and JPEG.

    Source: Shen et al. 2022, RandStainNA, with wider spread than any single laboratory.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    mean = lab.reshape(-1, 3).mean(0)
    spread = np.exp(rng.normal(0, 0.18 * strength, 3)).astype(np.float32)
    shift = (rng.normal(0, 1, 3) * np.array([14, 7, 7]) * strength).astype(np.float32)
    lab = (lab - mean) * spread + mean + shift
    out = cv2.cvtColor(np.clip(lab, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)
    if rng.random() < 0.3:
        gamma = float(np.exp(rng.normal(0, 0.2)))
        out = cv2.LUT(out, (255 * (np.arange(256) / 255) ** gamma).astype(np.uint8))
    if rng.random() < 0.25:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.15:
        noise = rng.normal(0, rng.uniform(2, 8), out.shape[:2])
        out = np.clip(out + noise[..., None], 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        quality = int(rng.integers(40, 90))
        out = cv2.imdecode(cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    return out


def mix_patches(
    images: np.ndarray, target: np.ndarray, known: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paste into each picture a rectangle of whole patches of another one, labels and all.

    What a patch shows must then be told from itself and its neighbours, not from how a patient's whole picture looks.

    Args:
        images: (B, S, S, 3) uint8.
        target: (B, g², C) share of every patch that each concept covers; g divides S.
        known: (B, C) 1 where the concept is known to be present or absent; of a mixed picture, where it is of both.
        rng: the only source of chance.

    Source: Yun et al. 2019, CutMix, with labels by patch.
    """
    pictures, size = images.shape[:2]
    grid = round(target.shape[1] ** 0.5)
    edge, places = size // grid, target.reshape(pictures, grid, grid, -1)
    mixed, labels, sure = images.copy(), places.copy(), known.copy()
    for to, of in enumerate(rng.permutation(pictures)):
        height, width = rng.integers(max(1, grid // 4), max(2, 3 * grid // 4), 2)
        y, x = rng.integers(0, grid - height + 1), rng.integers(0, grid - width + 1)
        pixels = np.s_[y * edge : (y + height) * edge, x * edge : (x + width) * edge]
        patches = np.s_[y : y + height, x : x + width]
        mixed[to][pixels], labels[to][patches] = images[of][pixels], places[of][patches]
        sure[to] *= known[of]
    return mixed, labels.reshape(target.shape), sure


def blank_out(image: np.ndarray, rng: np.random.Generator, chance: float = 0.2) -> np.ndarray:
    """Grey out up to two rectangles, so that no single spot decides a diagnosis."""
    if rng.random() >= chance:
        return image
    out = image.copy()
    size = image.shape[0]
    for _ in range(int(rng.integers(1, 3))):
        h, w = rng.integers(size // 8, size // 3, 2)
        y, x = rng.integers(0, size - h), rng.integers(0, size - w)
        out[y : y + h, x : x + w] = image.reshape(-1, 3).mean(0)
    return out
