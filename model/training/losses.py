"""The terms of Eq. 2 and what `tiny` needs besides.

Source: Liu et al. 2026, PathChat-SegR1, Eq. 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def next_token_loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean cross-entropy of logits (N, V) against labels (N,), the first term of Eq. 2."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * weight).sum() / weight.sum().clamp_min(1e-6)


def chain_loss(logits: Callable[[Tensor], Tensor], states: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    """`next_token_loss` of R sequences; the output layer runs over the places that count alone.

    Args:
        logits: the output layer, (N, H) → (N, V).
        states: (R, L, H).
        ids: (R, L).
        weight: (R, L), of predicting the token at that place.
    """
    where = weight[:, 1:] > 0
    return next_token_loss(logits(states[:, :-1][where]), ids[:, 1:][where], weight[:, 1:][where])


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 − soft Dice, mean over masks; (M, H, W) logits against targets in [0, 1]."""
    p, g = logits.float().sigmoid().flatten(1), target.flatten(1)
    return (1 - (2 * (p * g).sum(1) + 1) / (p.sum(1) + g.sum(1) + 1)).mean()


def mask_loss(logits: Tensor, target: Tensor, bce: float = 2.0, dice: float = 0.5) -> Tensor:
    """λ_bce·BCE + λ_dice·Dice, the second term of Eq. 2; (M, H, W) logits against targets in [0, 1]."""
    return bce * F.binary_cross_entropy_with_logits(logits.float(), target) + dice * dice_loss(logits, target)


def iou_head_loss(predicted: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Squared error of the IoU head (M,) against the actual IoU of the thresholded masks."""
    with torch.no_grad():
        p, g = (logits > 0).flatten(1), (target > 0.5).flatten(1)
        actual = (p & g).sum(1).float() / (p | g).sum(1).clamp_min(1)
    return F.mse_loss(predicted.float(), actual)


def dense_class_loss(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Class supervision of patch tokens.

    Args:
        logits: (B, N, C) one logit per patch and concept.
        target: (B, N, C) share of the patch that the concept covers.
        known: (B, C) 1 where the concept is known to be present or absent.

    Returns:
        Mean binary cross-entropy over known concepts.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(1)  # [B, C]
    return (losses * known).sum() / known.sum().clamp_min(1)
