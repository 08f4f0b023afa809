"""The pathology encoder: a DINOv2 ViT, and the projector that turns its patch tokens into image tokens.

Source: Liu et al. 2026, PathChat-SegR1, §3.1 (RuiPath encoder); Oquab et al. 2024, DINOv2.
"""

from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from model.config import VisionConfig
from model.stem import build_stem


class StemEmbeddings(nn.Module):
    """Stands where DINOv2's patch embedding stood: (B, 3, H, W) → (B, N, D)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.stem = build_stem(config.stem, config.stem_channels, config.patch_px, config.dim)
        # Dinov2Embeddings asks its patch embedding for the weight's dtype.
        self.projection = self.stem.project

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N, D), patches in raster order."""
        return self.stem(pixels).flatten(2).transpose(1, 2)


class PathologyEncoder(nn.Module):
    """DINOv2-style ViT; CLS is dropped after the last block."""

    def __init__(self, config: VisionConfig, tile_px: int):
        super().__init__()
        self.vit = Dinov2Model(
            Dinov2Config(
                hidden_size=config.dim,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                image_size=tile_px,
                patch_size=config.patch_px,
                layerscale_value=config.layer_scale,
                drop_path_rate=config.drop_path,
                use_mask_token=False,
            )
        )
        self.vit.embeddings.patch_embeddings = StemEmbeddings(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised → patch tokens (B, N, D) in raster order."""
        return self.vit(pixel_values=pixels).last_hidden_state[:, 1:]


class Projector(nn.Module):
    """Merges patch tokens 2×2 and maps them into the language model's space."""

    def __init__(self, vision_dim: int, language_dim: int, merge: int):
        super().__init__()
        self.merge = merge
        self.norm = nn.LayerNorm(vision_dim)
        self.mlp = nn.Sequential(
            nn.Linear(vision_dim * merge**2, language_dim),
            nn.GELU(),
            nn.Linear(language_dim, language_dim),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, D) patch tokens of a square tile → (B, N / merge², H) image tokens in raster order."""
        b, n, d = patches.shape
        grid, m = int(n**0.5), self.merge
        x = self.norm(patches).view(b, grid // m, m, grid // m, m, d)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(b, (grid // m) ** 2, m * m * d)  # [B, N/m², m²·D]
        return self.mlp(x)
