"""Where a tile looks like an exemplar: each place of the tile asks the exemplar's places whom it resembles.

Twice: by how places look (`model/appearance.py`), which serves whatever it is that is shown, and by what the pathology
encoder has made of them, which knows tissue. Each gives two numbers a place: the vote of the exemplar's places, weighed
by resemblance, on whether they lie under its outline, and the closest resemblance to anything under the outline.

Not in the paper, which shows the exemplar to the language model alone; the dense prior of few-shot segmentation (Tian
et al. 2020, PFENet, §4.2) carries what one token cannot: *where*. Its outlets start at zero, so that a model without
it is unchanged by it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.appearance import MEASURES

FINER = 2
"""Cells of appearance along one edge of a patch."""
CHANNELS = 4
"""Vote and closest resemblance by appearance, then by patch tokens."""
LARGEST_SHARE = 0.05
"""Part of a tile that may be all of what is sought; its mean tells small finds from none."""


class Comparison(nn.Module):
    """Compares places in a learned space; `key` maps what is known of a place into it."""

    def __init__(self, key: nn.Module):
        super().__init__()
        self.key = key
        self.sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
        self.nobody = nn.Parameter(torch.tensor(0.5))

    def forward(self, ours: Tensor, theirs: Tensor, under: Tensor) -> Tensor:
        """Compare tiles with exemplars.

        Args:
            ours: (B, N, D) of the tiles.
            theirs: (B, M, D) of the exemplars.
            under: (B, M) in [0, 1], the share of each exemplar place under the outline.

        Returns:
            (B, N, 2) in [-1, 1]: the vote, and the closest resemblance. A place that resembles nothing shown is voted
            down by nobody, a voter that lies outside every outline.
        """
        ours, theirs = (F.normalize(self.key(places).float(), dim=-1) for places in (ours, theirs))
        like = ours @ theirs.transpose(1, 2)  # [B, N, M] cosines
        votes = torch.cat([like, self.nobody.float().expand(*like.shape[:2], 1)], -1)
        votes = (votes * self.sharpness.float().exp().clamp(1, 100)).softmax(-1)
        vote = votes[..., :-1] @ under[..., None].float()  # [B, N, 1]
        closest = like.masked_fill(under[:, None] < 0.5 * under.amax(1)[:, None, None], -1.0).amax(-1, keepdim=True)
        return torch.cat([2 * vote - 1, closest], -1)


class Matcher(nn.Module):
    """Both comparisons, and what the language model is told of them."""

    def __init__(self, vision_dim: int, language_dim: int, merge: int, width: int = 64):
        super().__init__()
        self.merge = merge
        self.looks = Comparison(nn.Sequential(nn.Linear(MEASURES, width), nn.GELU(), nn.Linear(width, width // 2)))
        self.tokens = Comparison(nn.Sequential(nn.LayerNorm(vision_dim), nn.Linear(vision_dim, width, bias=False)))
        self.outlet = nn.Linear(5 * CHANNELS, language_dim, bias=False)
        nn.init.zeros_(self.outlet.weight)

    def forward(self, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], outlines: Tensor) -> Tensor:
        """Match tiles with exemplars.

        Args:
            ours, theirs: appearance (B, n, MEASURES) and patch tokens (B, N, D) of tiles and exemplars.
            outlines: (B, H, W) in [0, 1] of the exemplars.

        Returns:
            (B, CHANNELS, h, w) in [-1, 1], over the cells of appearance.
        """
        maps = []
        for comparison, mine, other in zip((self.looks, self.tokens), ours, theirs, strict=True):
            edge = math.isqrt(mine.shape[1])
            under = F.adaptive_avg_pool2d(outlines[:, None].float(), edge).flatten(1)
            found = comparison(mine.to(self.outlet.weight.dtype), other.to(self.outlet.weight.dtype), under)
            maps.append(found.transpose(1, 2).unflatten(2, (edge, edge)))  # [B, 2, h, w]
        fine, coarse = maps
        return torch.cat([fine, F.interpolate(coarse, fine.shape[-2:], mode="nearest")], 1)

    def told(self, match: Tensor, grid: int) -> Tensor:
        """(B, CHANNELS, h, w) → (B, grid², H), to be added to the image tokens: here, and in the whole tile."""
        here = torch.cat([F.adaptive_avg_pool2d(match, grid), F.adaptive_max_pool2d(match, grid)], 1)
        here = here.flatten(2).transpose(1, 2)  # [B, n, 2·CHANNELS]
        flat = match.flatten(2)
        largest = flat.topk(max(1, int(LARGEST_SHARE * flat.shape[-1])), -1).values.mean(-1)
        whole = torch.cat([flat.mean(-1), flat.amax(-1), largest], -1)[:, None].expand(-1, here.shape[1], -1)
        return self.outlet(torch.cat([here, whole], -1).to(self.outlet.weight.dtype))
