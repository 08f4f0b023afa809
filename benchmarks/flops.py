"""Floating-point operations of each stage, by formula: a multiplication and an addition are two.

Norms, activations, softmax, biases and residuals are left out, as is usual; `tests/test_benchmarks.py` holds the
formulas to what `torch` counts in the operators themselves. Windows of SAM's encoder are counted without their padding.
"""

from collections.abc import Iterable

from model.config import LanguageConfig, PathChatConfig, SamConfig, VisionConfig


def language_weights(c: LanguageConfig) -> int:
    """Weights of the decoder stack that every token is multiplied with."""
    kv_dim = c.kv_heads * (c.dim // c.heads)
    return c.depth * (2 * c.dim * c.dim + 2 * c.dim * kv_dim + 3 * c.dim * c.mlp_dim)


def prefill_flops(c: LanguageConfig, begin: int, end: int) -> int:
    """Tokens `begin` to `end` of one row through the stack, each looking at all before it, and one next token."""
    looked_at = (end * (end + 1) - begin * (begin + 1)) // 2
    return 2 * language_weights(c) * (end - begin) + 4 * c.depth * c.dim * looked_at + 2 * c.dim * c.vocabulary


def steps_flops(c: LanguageConfig, prompt: int, answers: Iterable[int]) -> int:
    """Every token of the answers fed once behind a prompt, each choosing the next."""
    total = 0
    for n in answers:
        total += prefill_flops(c, prompt, prompt + n) + (n - 1) * 2 * c.dim * c.vocabulary
    return total


def step_bytes(c: LanguageConfig, width: int) -> int:
    """Bytes of the weights that one step must read, at `width` bytes each; keys and values come on top."""
    return width * (language_weights(c) + c.dim * c.vocabulary)


def see_flops(c: PathChatConfig) -> int:
    """One tile through the pathology encoder, the dense head and the projector."""
    v, dim = c.vision, c.vision.dim
    edge_px = v.image_px or c.tile_px
    patches = (edge_px // v.patch_px) ** 2
    tokens = patches + 1 + v.registers
    mlp = 3 * _swiglu_width(v) if v.swiglu else 2 * int(dim * v.mlp_ratio)
    blocks = v.depth * (2 * tokens * (4 * dim * dim + mlp * dim) + 4 * tokens * tokens * dim)
    merged = patches // v.merge**2
    projector = 2 * merged * (dim * v.merge**2 + c.language.dim) * c.language.dim
    dense = 2 * patches * dim * len(c.dense_classes) + 2 * merged * 3 * len(c.dense_classes) * c.language.dim
    return _stem(v, edge_px) + blocks + projector + dense


def _swiglu_width(v: VisionConfig) -> int:
    """Hidden width of DINOv2's SwiGLU: two thirds of the MLP's, rounded up to 8."""
    return (int(int(v.dim * v.mlp_ratio) * 2 / 3) + 7) // 8 * 8


def survey_flops(c: PathChatConfig) -> int:
    """One tile through MedSAM's image encoder."""
    s, dim = c.sam, c.sam.dim
    edge_px = s.image_px or c.tile_px
    edge = edge_px // s.patch_px
    tokens, hidden = edge * edge, max(1, int(dim * s.adapter_ratio))
    adapters = 2 * 2 * dim * hidden if s.adapter_ratio else 0
    total = s.depth * 2 * tokens * (4 * dim * dim + 2 * dim * int(dim * s.mlp_ratio) + adapters)
    for block in range(s.depth):
        near = edge if s.window == 0 or block in s.global_blocks else s.window
        total += 4 * tokens * near * near * dim + (2 * tokens * 2 * near * dim if s.rel_pos else 0)
    neck = 2 * tokens * (dim * s.out_dim + 9 * s.out_dim**2)
    fine = 0
    if s.high_res and s.stem == "conv":
        fine = 2 * tokens * (4 * s.stem_channels[2] * s.out_dim // 4 + 16 * s.stem_channels[1] * s.out_dim // 8)
    return total + neck + fine + _stem(s, edge_px)


def see_scores_flops(c: PathChatConfig) -> int:
    """What of `see_flops` is queries against keys and scores against values, which a backward pass does twice."""
    v = c.vision
    tokens = ((v.image_px or c.tile_px) // v.patch_px) ** 2 + 1 + v.registers
    return 4 * v.depth * tokens * tokens * v.dim


def survey_scores_flops(c: PathChatConfig) -> int:
    """The same of `survey_flops`, relative positions included."""
    s = c.sam
    edge = (s.image_px or c.tile_px) // s.patch_px
    nears = [edge if s.window == 0 or b in s.global_blocks else s.window for b in range(s.depth)]
    return sum(4 * edge**2 * near * (near + s.rel_pos) * s.dim for near in nears)


def projector_flops(c: PathChatConfig) -> int:
    """What of `see_flops` is the projector's."""
    merged = c.image_tokens
    return 2 * merged * (c.vision.dim * c.vision.merge**2 + c.language.dim) * c.language.dim


def scores_flops(c: LanguageConfig, tokens: int) -> int:
    """The same of one row of so many tokens through the language model, each looking at all before it."""
    return 2 * c.depth * c.dim * tokens * (tokens + 1)


def decode_masks_flops(c: PathChatConfig) -> int:
    """One mask: the Seg-Adapter and SAM's decoder, of whose hypernetworks one is used.

    Source: Kirillov et al. 2023, Segment Anything, App. A: two-way blocks, cross attentions at half width.
    """
    s, h = c.sam, c.language.dim
    d, places = s.out_dim, (c.mask_px // 4) ** 2
    tokens = 1 + 1 + s.multimask_outputs + 1  # IoU, masks, the prompt
    cross = 2 * d * (d // 2) * 2 * (tokens + places) + 4 * tokens * places * (d // 2)
    block = 8 * tokens * d * d + 4 * tokens * tokens * d + 4 * tokens * d * s.decoder_mlp_dim + 2 * cross
    upscale = 2 * places * d * d + 2 * 4 * places * d * (d // 8)
    heads = 2 * d * (2 * d + 1 + s.multimask_outputs) + 2 * d * (2 * d + d // 8) + 2 * d // 8 * c.mask_px**2
    adapter = 2 * (h * h + h * d)
    return adapter + s.decoder_depth * block + cross + upscale + heads


def _stem(c: VisionConfig | SamConfig, edge_px: int) -> int:
    """Pixels to patch tokens."""
    patches = (edge_px // c.patch_px) ** 2
    if c.stem == "patch":
        return 2 * patches * 3 * c.patch_px**2 * c.dim
    total = 2 * patches * c.stem_channels[-1] * c.dim
    for stride, before, after in zip((2, 4, 8, 16), (3, *c.stem_channels), c.stem_channels, strict=False):
        residual = 9 * after * after if stride >= 4 else 0
        total += 2 * (edge_px // stride) ** 2 * (9 * before * after + residual)
    return total
