"""MedSAM: segment-anything's image encoder with adapters, and its mask decoder run for all masks of a batch at once.

Source: Kirillov et al. 2023, Segment Anything, §3 and App. A; Ma et al. 2024, MedSAM; adapters: Chen et al. 2022,
AdaptFormer, as in Liu et al. 2026, PathChat-SegR1, §3.3.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from model.attention import attend
from model.config import SamConfig
from model.matcher import CHANNELS
from model.segment_anything_modules import (
    Block,
    ImageEncoderViT,
    LayerNorm2d,
    MaskDecoder,
    PositionEmbeddingRandom,
    TwoWayTransformer,
    window_partition,
    window_unpartition,
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
    """SAM's block with an adapter after the attention (with a skip) and one parallel to the MLP (× 0.5).

    Attention is SAM's, by the fused kernel: the relative positions, which SAM adds to the scores, are a product of the
    query with a row and a column vector, so that they join the dot product as further dimensions: the query holds what
    it says to every row and column, the key says in which it stands. No scores are ever written out.

    Source: Li et al. 2022, MViTv2, §4.1 (decomposed relative positions).
    """

    def __init__(self, *args: object, dim: int, adapter_ratio: float, **kwargs: object):
        super().__init__(*args, dim=dim, **kwargs)
        self.attention_adapter = Adapter(dim, adapter_ratio) if adapter_ratio else None
        self.mlp_adapter = Adapter(dim, adapter_ratio) if adapter_ratio else None
        self.written_out = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) → (B, H, W, D)."""
        attended = self._windowed(self.norm1(x))
        x = x + attended
        if self.attention_adapter is not None:
            x = x + self.attention_adapter(attended)
        y = self.norm2(x)
        if self.mlp_adapter is None:
            return x + self.mlp(y)
        return x + self.mlp(y) + 0.5 * self.mlp_adapter(y)

    def _windowed(self, x: Tensor) -> Tensor:
        if self.window_size == 0:
            return self._attend(x)
        h, w = x.shape[1:3]
        windows, padded = window_partition(x, self.window_size)
        return window_unpartition(self._attend(windows), self.window_size, padded, (h, w))

    def _attend(self, x: Tensor) -> Tensor:
        """Every token of (B, H, W, D) looks at every other."""
        b, h, w, dim = x.shape
        qkv = self.attn.qkv(x).view(b, h * w, 3, self.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
        d = q.shape[-1]
        if self.attn.use_rel_pos:
            q, k = _with_places(self.attn, q, k, (h, w))
            # Values as wide as keys: only then does the fused kernel take them.
            v = nn.functional.pad(v, (0, q.shape[-1] - d))
            out = nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :d]
        else:
            out = (attend if self.written_out else nn.functional.scaled_dot_product_attention)(q, k, v)
        return self.attn.proj(out.transpose(1, 2).reshape(b, h, w, dim))


def _with_places(attn: nn.Module, q: Tensor, k: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B, heads, h·w, d) queries and keys → (B, heads, h·w, d + h + w), whose products are SAM's scores."""
    h, w = size
    grid = q.unflatten(2, size)  # [B, heads, h, w, d]
    to_rows = torch.einsum("bnhwd,hkd->bnhwk", grid, _relative(attn.rel_pos_h, h))
    to_columns = torch.einsum("bnhwd,wkd->bnhwk", grid, _relative(attn.rel_pos_w, w))
    eye = torch.eye(max(size), dtype=k.dtype, device=k.device)
    place = torch.cat([eye[:h, :h].repeat_interleave(w, 0), eye[:w, :w].repeat(h, 1)], 1)  # [N, h + w]
    q = torch.cat([grid * attn.scale, to_rows, to_columns], -1).flatten(2, 3)
    k = torch.cat([k, place.expand(*k.shape[:2], -1, -1)], -1)
    spare = -q.shape[-1] % 8  # fused kernels want multiples of 8
    return (nn.functional.pad(q, (0, spare)), nn.functional.pad(k, (0, spare))) if spare else (q, k)


def _relative(table: Tensor, size: int) -> Tensor:
    """(2·size − 1, d) by distance → (size, size, d): the row for each query and key."""
    place = torch.arange(size, device=table.device)
    return table[place[:, None] - place + size - 1]


class SamImageEncoder(nn.Module):
    """Pixels → the feature map that masks are decoded from."""

    def __init__(self, config: SamConfig, image_px: int):
        super().__init__()
        self.vit = ImageEncoderViT(
            img_size=image_px,
            patch_size=config.patch_px,
            embed_dim=config.dim,
            depth=0,
            num_heads=config.heads,
            out_chans=config.out_dim,
        )
        grid = image_px // config.patch_px
        self.vit.blocks = nn.ModuleList(
            AdaptedBlock(
                dim=config.dim,
                num_heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                use_rel_pos=config.rel_pos,
                window_size=0 if i in config.global_blocks else config.window,
                input_size=(grid, grid),
                adapter_ratio=config.adapter_ratio,
                norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
            )
            for i in range(config.depth)
        )
        self.vit.patch_embed = build_stem(config.stem, config.stem_channels, config.patch_px, config.dim)
        self.vit.neck[1], self.vit.neck[3] = Norm2d(config.out_dim), Norm2d(config.out_dim)
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


class Norm2d(LayerNorm2d):
    """SAM's norm over channels; with reduced weights its statistics are fp32 all the same, as `nn.LayerNorm`'s are."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        if self.weight.dtype == torch.float32:
            return super().forward(x)
        x = nn.functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class DensePositions(PositionEmbeddingRandom):
    """SAM's random frequencies, fp32 wherever the model goes: rounded they would put every pixel elsewhere."""

    def __init__(self, features: int):
        super().__init__(features)
        self.positional_encoding_gaussian_matrix = self.positional_encoding_gaussian_matrix.float()

    def _apply(self, fn: Callable, recurse: bool = True) -> "DensePositions":
        exact = self.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)
        moved = self.positional_encoding_gaussian_matrix
        if moved.dtype != torch.float32:
            self.positional_encoding_gaussian_matrix = exact.to(moved.device)
        return self


class BatchedMaskDecoder(nn.Module):
    """SAM's mask decoder over M masks of any images in one call; of its mask tokens only the first, SAM's answer to an
    unambiguous prompt, is decoded.

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
        self.decoder.output_upscaling[1] = Norm2d(config.out_dim // 4)
        self.positions = DensePositions(config.out_dim // 2)
        self.no_mask = nn.Embedding(1, config.out_dim)
        self.match = nn.Conv2d(CHANNELS, config.out_dim, 1, bias=False)
        self.match_evidence = nn.Conv2d(CHANNELS, 1, 1, bias=False)
        nn.init.zeros_(self.match.weight)
        nn.init.zeros_(self.match_evidence.weight)

    def forward(
        self, features: list[Tensor], image_index: Tensor, prompts: Tensor, match: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode M masks.

        Args:
            features: what `SamImageEncoder` gives for B images.
            image_index: (M,) int64, the image of each mask.
            prompts: (M, C) sparse prompt embeddings, one per `<SEG>`.
            match: (M, 4, ·, ·) where each mask's tile looks like an exemplar; a dense prompt, and, finer than any
                prompt, evidence beside the logits. None means nowhere.

        Returns:
            mask logits (M, 4h, 4w) and predicted IoU (M,).
        """
        d = self.decoder
        source = features[0][image_index] + self.no_mask.weight.view(1, -1, 1, 1)  # [M, C, h, w]
        m, c, h, w = source.shape
        if match is not None:
            match = match.to(source.dtype)
            source = source + self.match(nn.functional.adaptive_avg_pool2d(match, (h, w)))
        with torch.autocast(source.device.type, enabled=False):
            place = self.positions((h, w)).to(source.dtype)[None]  # the dense encoding stays fp32 until here
        output_tokens = torch.cat([d.iou_token.weight, d.mask_tokens.weight])  # [1 + masks, C]
        tokens = torch.cat([output_tokens.expand(m, -1, -1).to(prompts.dtype), prompts[:, None]], dim=1)
        states, source = d.transformer(source, place.expand(m, -1, -1, -1), tokens)
        upscaled = self._upscale(source.transpose(1, 2).reshape(m, c, h, w), features, image_index)
        hyper = d.output_hypernetworks_mlps[0](states[:, 1])  # [M, C/8]
        logits = torch.einsum("mc,mchw->mhw", hyper, upscaled)
        if match is not None:
            evidence = nn.functional.interpolate(
                self.match_evidence(match), logits.shape[-2:], mode="bilinear", align_corners=False
            )
            logits = logits + evidence[:, 0]
        return logits, d.iou_prediction_head(states[:, 0])[:, 0]

    def _upscale(self, x: Tensor, features: list[Tensor], image_index: Tensor) -> Tensor:
        """(M, C, h, w) → (M, C/8, 4h, 4w)."""
        up1, norm, act1, up2, act2 = self.decoder.output_upscaling
        if len(features) == 1:
            return self.decoder.output_upscaling(x)
        x = act1(norm(up1(x) + features[1][image_index]))
        return act2(up2(x) + features[2][image_index])


__all__ = ["Adapter", "AdaptedBlock", "BatchedMaskDecoder", "SamImageEncoder"]
