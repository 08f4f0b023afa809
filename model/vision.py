"""The pathology encoder: a DINOv2 ViT, and the projector that turns its patch tokens into image tokens.

Source: Liu et al. 2026, PathChat-SegR1, §3.1 (RuiPath encoder); Oquab et al. 2024, DINOv2; Darcet et al. 2024,
Vision transformers need registers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

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
    """DINOv2-style ViT; CLS and registers are dropped after the last block."""

    def __init__(self, config: VisionConfig, image_px: int):
        super().__init__()
        self.config = config
        self.vit = _vit(config, config.pos_px or image_px)
        self.vit.embeddings.patch_embeddings = StemEmbeddings(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised → patch tokens (B, N, D) in raster order."""
        parts = self.vit.embeddings
        grid = pixels.shape[-1] // self.config.patch_px
        patches = parts.patch_embeddings(pixels)
        tokens = torch.cat([parts.cls_token.expand(len(pixels), -1, -1), patches], 1) + self._positions(grid)
        if self.config.registers:
            registers = parts.register_tokens.expand(len(pixels), -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
        states = self.vit.layernorm(self.vit.encoder(tokens).last_hidden_state)
        return states[:, 1 + self.config.registers :]

    def _positions(self, grid: int) -> Tensor:
        """(1, 1 + grid², D): CLS's position, then the patches', interpolated in fp32 from the grid of `pos_px`."""
        trained = self.vit.embeddings.position_embeddings
        _, n, d = trained.shape
        edge = int((n - 1) ** 0.5)
        if edge == grid:
            return trained
        square = trained[:, 1:].view(1, edge, edge, d).permute(0, 3, 1, 2).float()
        how = {"mode": "bicubic", "align_corners": False, "antialias": self.config.pos_antialias}
        square = F.interpolate(square, (grid, grid), **how).to(trained.dtype)
        return torch.cat([trained[:, :1], square.flatten(2).transpose(1, 2)], 1)


def _vit(config: VisionConfig, pos_px: int) -> nn.Module:
    """The ViT of `transformers`, with position embeddings for pictures of `pos_px`."""
    numbers = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "image_size": pos_px,
        "patch_size": config.patch_px,
        "layerscale_value": config.layer_scale,
        "drop_path_rate": config.drop_path,
        "use_swiglu_ffn": config.swiglu,
    }
    if not config.registers:
        return Dinov2Model(Dinov2Config(**numbers, use_mask_token=False))
    vit = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**numbers, num_register_tokens=config.registers))
    vit.embeddings.mask_token = None  # only masked training needs it
    return vit


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
