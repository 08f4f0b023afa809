"""A very small PathChat-SegR1 with fixed random weights, and one that likes to say `<SEG>`."""

from dataclasses import replace

import torch
from tokenizers import Tokenizer

from model.builders import build, paper_config, tiny_config
from model.config import LanguageConfig, PathChatConfig, SamConfig, VisionConfig
from model.pathchat import PathChatSegR1
from model.tokenizer import PathTokenizer

TEXTS = [
    "Where is the tumour? Scale 1.0 µm/px. Scale unknown.",
    "<think> Looking for tumour. Two dark glands lie in the upper left area. This fits tumour. </think> "
    "Found in the area: tumour <SEG>.",
]


def small_config(**changes: object) -> PathChatConfig:
    """64-px tiles, two layers of everything."""
    config = tiny_config(
        tile_px=64,
        max_answer_tokens=14,
        vision=VisionConfig(dim=32, depth=2, heads=2, stem_channels=(8, 8, 16, 16), drop_path=0.0),
        language=LanguageConfig(
            dim=32, depth=2, heads=2, kv_heads=1, mlp_dim=64, mrope_section=(2, 3, 3), vocabulary=400
        ),
        sam=SamConfig(
            dim=32, depth=2, heads=2, stem_channels=(8, 8, 16, 16), out_dim=32, decoder_heads=2, decoder_mlp_dim=64
        ),
    )
    return replace(config, **changes)


def small_model(seed: int = 0, seg_bias: float = 0.0, **changes: object) -> PathChatSegR1:
    """Random weights; `seg_bias` lengthens the `<SEG>` row of the embedding, so that it is chosen more often."""
    torch.manual_seed(seed)
    model = build(small_config(**changes), PathTokenizer.train(TEXTS, 400)).eval()
    with torch.no_grad():
        table = model.language_model.text_model.embed_tokens.weight
        table.normal_(0, 0.4)
        table[model.tokenizer.seg] *= 1 + seg_bias
    return model


def small_paper_config(**changes: object) -> PathChatConfig:
    """The paper's layout with two layers of everything: patch stems, windows with relative positions, registers."""
    config = paper_config(
        "7b",
        tile_px=128,
        max_answer_tokens=14,
        vision=VisionConfig(
            dim=32, depth=2, heads=2, mlp_ratio=4, patch_px=16, stem="patch", layer_scale=1e-1, drop_path=0.0,
            image_px=64, pos_px=48, registers=3, swiglu=True,
        ),
        language=LanguageConfig(
            dim=64, depth=2, heads=4, kv_heads=2, mlp_dim=96, mrope_section=(2, 3, 3), vocabulary=420, rope_theta=1e6,
            rms_eps=1e-6, tied=False,
        ),
        sam=SamConfig(
            dim=32, depth=3, heads=2, mlp_ratio=4.0, window=5, global_blocks=(1,), patch_px=16, stem="patch",
            out_dim=32, decoder_heads=2, decoder_mlp_dim=64, multimask_outputs=3, high_res=False, image_px=96,
            rel_pos=True, scheme="medsam", norm_eps=1e-6,
        ),
    )  # fmt: skip
    return replace(config, **changes)


class TurnTokenizer(PathTokenizer):
    """A small tokenizer that knows the marks of Qwen's turns; answers end with the turn."""

    def __init__(self, tokenizer: Tokenizer):
        tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"])
        super().__init__(tokenizer)
        self.bos, self.eos = (tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))


def small_paper_model(seed: int = 0, seg_bias: float = 0.0, **changes: object) -> PathChatSegR1:
    """Random weights in the paper's layout; `seg_bias` lengthens the `<SEG>` row of the output layer."""
    model = build(small_paper_config(**changes), TurnTokenizer.train(TEXTS, 400), device="cpu", seed=seed).eval()
    with torch.no_grad():
        table = model.language_model.qwen.lm_head.weight
        table.normal_(0, 0.4)
        table[model.tokenizer.seg] *= 1 + seg_bias
        model.mask_decoder.decoder.output_hypernetworks_mlps[0].layers[-1].weight.mul_(4.0)
    return model


def tiles(n: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    """(n, size, size, 3) uint8 random pictures with some structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 8, 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return (fine * 255).byte().permute(0, 2, 3, 1).contiguous()
