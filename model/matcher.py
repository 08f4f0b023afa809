"""Where a tile looks like an exemplar: each patch of the tile asks the exemplar's patches whom it resembles.

Two numbers a patch: the vote of the exemplar's patches, weighed by resemblance, on whether they lie under its outline
(near ½ where the tile shows what the exemplar does not), and the closest resemblance to anything under the outline.

Not in the paper, which shows the exemplar to the language model alone; the dense prior of few-shot segmentation (Tian
et al. 2020, PFENet, §4.2) carries what one token cannot: *where*. Its outlets start at zero, so that a model without
it is unchanged by it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Matcher(nn.Module):
    """Compares patches in a learned space of `width` dimensions."""

    def __init__(self, vision_dim: int, language_dim: int, merge: int, width: int = 64):
        super().__init__()
        self.merge = merge
        self.norm = nn.LayerNorm(vision_dim)
        self.key = nn.Linear(vision_dim, min(width, vision_dim), bias=False)
        self.sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
        self.outlet = nn.Linear(6, language_dim, bias=False)
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.outlet.weight)

    def forward(self, patches: Tensor, shown: Tensor, under: Tensor) -> Tensor:
        """Match tiles with exemplars.

        Args:
            patches: (B, N, D) of the tiles.
            shown: (B, N, D) of the exemplars.
            under: (B, N) in [0, 1], the share of each exemplar patch under the outline.

        Returns:
            (B, N, 2) in [-1, 1]: the vote, and the closest resemblance to what lies under the outline.
        """
        ours = F.normalize(self.key(self.norm(patches)).float(), dim=-1)
        theirs = F.normalize(self.key(self.norm(shown)).float(), dim=-1)
        like = ours @ theirs.transpose(1, 2)  # [B, N, N] cosines
        vote = (like * self.sharpness.exp().clamp(1, 100)).softmax(-1) @ under[..., None].float()  # [B, N, 1]
        closest = like.masked_fill(under[:, None] < 0.5 * under.amax(1)[:, None, None], -1.0).amax(-1, keepdim=True)
        return torch.cat([2 * vote - 1, closest], -1)

    def told(self, match: Tensor, grid: int) -> Tensor:
        """(B, N, 2) over a square of `grid` patches → (B, N / merge², H), to be added to image tokens."""
        b, m = len(match), self.merge
        here = match.view(b, grid // m, m, grid // m, m, 2).mean((2, 4)).flatten(1, 2)  # [B, n, 2]
        whole = torch.cat([match.mean(1), match.amax(1)], -1)[:, None].expand(-1, here.shape[1], -1)
        return self.outlet(torch.cat([here, whole], -1).to(self.outlet.weight.dtype))
