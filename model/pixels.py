"""From a tile's pixels to what an encoder takes: resized, normalised, on the device where the tile lies.

Tiles are square, so that SAM's longest side is every side and nothing is left to pad.

Source: Ma et al. 2024, MedSAM, Methods; Kirillov et al. 2023, Segment Anything, App. A.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SAM_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
SAM_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


def resize(images: Tensor, edge_px: int, mode: str = "bilinear") -> Tensor:
    """(B, T, T, 3) uint8 → (B, 3, edge, edge) float32 in [0, 255], antialiased; untouched where T is the edge.

    Raises:
        ValueError: the tiles are not square.
    """
    height, width = images.shape[1:3]
    if height != width:
        raise ValueError(f"images are {height} × {width} px: accepted are square tiles")
    pixels = images.permute(0, 3, 1, 2).float()
    if height == edge_px:
        return pixels
    pixels = F.interpolate(pixels, (edge_px, edge_px), mode=mode, align_corners=False, antialias=True)
    return pixels.clamp_(0, 255)  # bicubic weights overshoot


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, 3, H, W) in [0, 255] → the same by fixed mean and std of [0, 1]; a stretch makes neighbours disagree."""
    pixels = pixels / 255.0
    for channel, (centre, spread) in enumerate(zip(mean, std, strict=True)):  # plain numbers: nothing to copy or await
        pixels[:, channel].sub_(centre).div_(spread)
    return pixels.contiguous(memory_format=torch.channels_last)


def stretch(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) → each tile from 0 at its least value to 1 at its largest, as MedSAM was trained."""
    least, most = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    return ((pixels - least) / (most - least).clamp_min(1e-8)).contiguous(memory_format=torch.channels_last)


def for_sam(images: Tensor, edge_px: int, scheme: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """What MedSAM's encoder takes.

    Args:
        images: (B, T, T, 3) uint8.
        edge_px: edge that the encoder works at.
        scheme: `fixed` by mean and std, `medsam` bicubic and by each tile's least and most, `sam` by SAM's own.
        mean, std: of RGB in [0, 1], for `fixed`.

    Returns:
        (B, 3, edge, edge) float32.
    """
    if scheme == "medsam":
        return stretch(resize(images, edge_px, "bicubic"))
    if scheme == "sam":
        mean, std = SAM_MEAN, SAM_STD
    return normalise(resize(images, edge_px), mean, std)
