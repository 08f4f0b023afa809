"""MedSAM: segment-anything's image encoder with adapters, and its mask decoder run for all masks of a batch at once.

Source: Kirillov et al. 2023, Segment Anything, §3 and App. A; Ma et al. 2024, MedSAM; adapters: Chen et al. 2022,
AdaptFormer, as in Liu et al. 2026, PathChat-SegR1, §3.3.
"""

import torch
from torch import Tensor, nn

from model.attention import attend
from model.config import SamConfig
from model.segment_anything_modules import (
    Block,
    ImageEncoderViT,
    MaskDecoder,
    PositionEmbeddingRandom,
    TwoWayTransformer,
)
from model.stem import build_stem


class Adapter(nn.Module):
    """Down, GELU, up; the up-projection starts at zero, so a fresh adapter changes nothing."""

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        hidden = max(1, int(dim * ratio))
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        return self.up(nn.functional.gelu(self.down(x)))


class AdaptedBlock(Block):
    """SAM's block with an adapter after the attention (with a skip) and one parallel to the MLP (× 0.5)."""

    def __init__(self, *args: object, dim: int, adapter_ratio: float, **kwargs: object):
        super().__init__(*args, dim=dim, **kwargs)
        self.attention_adapter = Adapter(dim, adapter_ratio)
        self.mlp_adapter = Adapter(dim, adapter_ratio)
        self.written_out = False

    def _attend(self, x: Tensor) -> Tensor:
        """Global attention without relative positions takes the fused kernel; all else is SAM's own code."""
        if self.window_size > 0 or self.attn.use_rel_pos:
            return self._windowed(x)
        b, h, w, d = x.shape
        qkv = self.attn.qkv(x).view(b, h * w, 3, self.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
        attention = attend if self.written_out else nn.functional.scaled_dot_product_attention
        out = attention(q, k, v)
        return self.attn.proj(out.transpose(1, 2).reshape(b, h, w, d))

    def _windowed(self, x: Tensor) -> Tensor:
        from segment_anything.modeling.image_encoder import window_partition, window_unpartition

        if self.window_size == 0:
            return self.attn(x)
        h, w = x.shape[1:3]
        windows, padded = window_partition(x, self.window_size)
        return window_unpartition(self.attn(windows), self.window_size, padded, (h, w))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) → (B, H, W, D)."""
        attended = self._attend(self.norm1(x))
        x = x + attended + self.attention_adapter(attended)
        y = self.norm2(x)
        return x + self.mlp(y) + 0.5 * self.mlp_adapter(y)


class SamImageEncoder(nn.Module):
    """Pixels → the feature map that masks are decoded from."""

    def __init__(self, config: SamConfig, tile_px: int):
        super().__init__()
        self.vit = ImageEncoderViT(
            img_size=tile_px,
            patch_size=config.patch_px,
            embed_dim=config.dim,
            depth=0,
            num_heads=config.heads,
            out_chans=config.out_dim,
        )
        grid = tile_px // config.patch_px
        self.vit.blocks = nn.ModuleList(
            AdaptedBlock(
                dim=config.dim,
                num_heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                window_size=0 if i in config.global_blocks else config.window,
                input_size=(grid, grid),
                adapter_ratio=config.adapter_ratio,
            )
            for i in range(config.depth)
        )
        self.vit.patch_embed = build_stem(config.stem, config.stem_channels, config.patch_px, config.dim)
        self.high_res = nn.ModuleList()
        if config.high_res and config.stem == "conv":
            stride4, stride8 = config.stem_channels[1], config.stem_channels[2]
            self.high_res.extend(
                [nn.Conv2d(stride8, config.out_dim // 4, 1), nn.Conv2d(stride4, config.out_dim // 8, 1)]
            )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised → [(B, C, H/16, W/16), and with high-res (B, C/4, H/8, ·), (B, C/8, H/4, ·)]."""
        maps = self.vit.patch_embed.features(pixels)
        x = maps[-1].permute(0, 2, 3, 1) + self.vit.pos_embed  # [B, h, w, D]
        for block in self.vit.blocks:
            x = block(x)
        features = [self.vit.neck(x.permute(0, 3, 1, 2))]
        if self.high_res:
            features += [self.high_res[0](maps[2]), self.high_res[1](maps[1])]
        return features


class BatchedMaskDecoder(nn.Module):
    """SAM's mask decoder over M masks of any images in one call; only the mask token that is used is decoded.

    High-resolution features, where the encoder gives them, are added while upscaling (Ravi et al. 2024, SAM 2, §4).
    """

    def __init__(self, config: SamConfig):
        super().__init__()
        self.decoder = MaskDecoder(
            transformer_dim=config.out_dim,
            transformer=TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.out_dim,
                num_heads=config.decoder_heads,
                mlp_dim=config.decoder_mlp_dim,
            ),
            num_multimask_outputs=config.multimask_outputs,
            iou_head_hidden_dim=config.out_dim,
        )
        self.positions = PositionEmbeddingRandom(config.out_dim // 2)
        self.no_mask = nn.Embedding(1, config.out_dim)

    def forward(self, features: list[Tensor], image_index: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Decode M masks.

        Args:
            features: what `SamImageEncoder` gives for B images.
            image_index: (M,) int64, the image of each mask.
            prompts: (M, C) sparse prompt embeddings, one per `<SEG>`.

        Returns:
            mask logits (M, 4h, 4w) and predicted IoU (M,).
        """
        d = self.decoder
        source = features[0][image_index] + self.no_mask.weight.view(1, -1, 1, 1)  # [M, C, h, w]
        m, c, h, w = source.shape
        with torch.autocast(source.device.type, enabled=False):
            place = self.positions((h, w)).to(source.dtype)[None]  # the dense encoding stays fp32 until here
        output_tokens = torch.cat([d.iou_token.weight, d.mask_tokens.weight])  # [1 + masks, C]
        tokens = torch.cat([output_tokens.expand(m, -1, -1).to(prompts.dtype), prompts[:, None]], dim=1)
        states, source = d.transformer(source, place.expand(m, -1, -1, -1), tokens)
        upscaled = self._upscale(source.transpose(1, 2).reshape(m, c, h, w), features, image_index)
        hyper = d.output_hypernetworks_mlps[0](states[:, 1])  # [M, C/8]
        logits = torch.einsum("mc,mchw->mhw", hyper, upscaled)
        return logits, d.iou_prediction_head(states[:, 0])[:, 0]

    def _upscale(self, x: Tensor, features: list[Tensor], image_index: Tensor) -> Tensor:
        """(M, C, h, w) → (M, C/8, 4h, 4w)."""
        up1, norm, act1, up2, act2 = self.decoder.output_upscaling
        if len(features) == 1:
            return self.decoder.output_upscaling(x)
        x = act1(norm(up1(x) + features[1][image_index]))
        return act2(up2(x) + features[2][image_index])


__all__ = ["Adapter", "AdaptedBlock", "BatchedMaskDecoder", "SamImageEncoder"]
