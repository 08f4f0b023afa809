"""How pixels become patch tokens: a convolutional stem, or ViT's one-step patch embedding."""

from torch import Tensor, nn


class ResidualConv(nn.Module):
    """x + conv3×3(GELU(GroupNorm(x))): a little local texture before the tokens."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return x + self.conv(nn.functional.gelu(self.norm(x)))


class ConvStem(nn.Module):
    """Four strided 3×3 convolutions with GroupNorm, then 1×1: stride 16, as patch embedding, but learned locally.

    Source: Xiao et al. 2021, Early convolutions help transformers see better. `VisionConfig.stem` chooses.
    """

    def __init__(self, channels: tuple[int, ...], dim: int):
        super().__init__()
        widths = (3, *channels)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, after),
                nn.GELU(),
                *([ResidualConv(after)] if stride >= 4 else []),
            )
            for stride, before, after in zip((2, 4, 8, 16), widths, widths[1:], strict=False)
        )
        self.project = nn.Conv2d(channels[-1], dim, 1)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → features at stride 2, 4, 8, 16, then the projected tokens' map at stride 16."""
        maps = []
        x = pixels
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [*maps, self.project(x)]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D, H/16, W/16)."""
        return self.features(pixels)[-1]


class PatchStem(nn.Module):
    """One-step patch embedding, as in ViT."""

    def __init__(self, patch_px: int, dim: int):
        super().__init__()
        self.project = nn.Conv2d(3, dim, patch_px, stride=patch_px)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → only the tokens' map; there are no finer features."""
        return [self.project(pixels)]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D, H/patch, W/patch)."""
        return self.project(pixels)


def build_stem(kind: str, channels: tuple[int, ...], patch_px: int, dim: int) -> ConvStem | PatchStem:
    """The stem by name.

    Raises:
        ValueError: `kind` is neither `conv` (stride 16 only) nor `patch`.
    """
    if kind == "conv" and patch_px == 16:
        return ConvStem(channels, dim)
    if kind == "patch":
        return PatchStem(patch_px, dim)
    raise ValueError(f"stem={kind!r} with patch_px={patch_px}: accepted are 'conv' with patch_px=16, or 'patch'")
