"""Masked autoencoding of an encoder that must see its full grid: mask tokens instead of dropped patches.

He et al. drop masked patches before the encoder. SAM's windows and relative positions, and a dense head, need the whole
grid, so masked patches stay, as a learned token (as in SimMIM), and one small head predicts them from what the encoder
says at their place; no decoder has to pass messages between patches.

Nothing of a masked patch may reach the encoder. A convolutional stem sees beyond its patch, so that the token alone
would not do: neighbours would have seen what it replaces. Filling the pixels alone would not do either: flat squares,
and borders around them, look like something. So pixels are filled *before* the stem, and the token is put in *after*.

Source: He et al. 2021, Masked autoencoders are scalable vision learners, §3; Xie et al. 2022, SimMIM, §3.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLAT = 1e-3
"""Added to the variance of a patch of normalised pixels: on empty glass there is only noise to predict."""


class MaskedHead(nn.Module):
    """What an encoder needs to be trained as a masked autoencoder, and nothing else does.

    Attributes:
        token: (D,) stands in for masked patches behind the stem.
        predict: (B, N, C) outputs of the encoder → (B, N, 3·p²) pixels, see `patch_targets`.
    """

    def __init__(self, dim: int, out_dim: int, patch_px: int):
        super().__init__()
        self.token = nn.Parameter(torch.empty(dim).normal_(0, 0.02))
        hidden = 2 * out_dim
        self.predict = nn.Sequential(nn.Linear(out_dim, hidden), nn.GELU(), nn.Linear(hidden, 3 * patch_px**2))

    @contextmanager
    def standing_in(self, project: nn.Module, hidden: Tensor) -> Iterator[None]:
        """While it lasts, the token replaces what a stem's last layer, (B, D, g, g), says where `hidden` (B, g, g)."""

        def replace(_: nn.Module, __: tuple, patches: Tensor) -> Tensor:
            token = self.token.to(patches.dtype).view(1, -1, 1, 1)
            return torch.where(hidden[:, None], token, patches)

        hook = project.register_forward_hook(replace)
        try:
            yield
        finally:
            hook.remove()


def draw_masks(rng: np.random.Generator, pictures: int, grid: int, ratio: float) -> np.ndarray:
    """(pictures, grid, grid) bool: True at the same number of patches of each, `ratio` of them, anywhere."""
    order = rng.random((pictures, grid * grid)).argsort(1).argsort(1)
    return (order < round(ratio * grid * grid)).reshape(pictures, grid, grid)


def fill_hidden(pixels: Tensor, hidden: Tensor) -> Tensor:
    """Paint masked patches in the mean colour of the visible ones, whatever scheme normalised the pixels.

    Args:
        pixels: (B, 3, E, E), as the encoder takes them.
        hidden: (B, g, g) bool; g divides E.
    """
    edge = pixels.shape[-1] // hidden.shape[-1]
    seen = (~hidden).to(pixels.dtype).repeat_interleave(edge, 1).repeat_interleave(edge, 2)[:, None]  # [B, 1, E, E]
    mean = (pixels * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp_min(1)
    return torch.where(seen > 0, pixels, mean).contiguous(memory_format=torch.channels_last)


def patch_targets(pixels: Tensor, patch_px: int) -> Tensor:
    """What is to be predicted: each patch's pixels, each colour of a patch with mean 0 and variance 1.

    He et al. normalise a patch over its pixels and colours together. Colour by colour, a linear change of stain leaves
    the target as it is, so that this loss does not ask for what the other term of Eq. 1 forbids.

    Args:
        pixels: (B, 3, E, E).
        patch_px: p, edge of a patch.

    Returns:
        (B, (E/p)², 3·p²) float32, colour by colour, patches in raster order.
    """
    patches = F.pixel_unshuffle(pixels.float(), patch_px).flatten(2).transpose(1, 2)  # [B, N, 3·p²]
    colours = patches.unflatten(2, (3, patch_px**2))
    variance, mean = torch.var_mean(colours, -1, correction=0, keepdim=True)
    return ((colours - mean) / (variance + FLAT).sqrt()).flatten(2)


def mae_loss(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """L_MAE: mean squared error over masked patches alone.

    Args:
        predicted, target: (B, N, P).
        hidden: (B, N) bool, or (B, g, g) with g² = N; which patches were masked.
    """
    errors = (predicted.float() - target.float()).square().mean(-1)
    weight = hidden.flatten(1).to(errors.dtype)
    return (errors * weight).sum() / weight.sum().clamp_min(1)
