"""A very small PathChat-SegR1 with fixed random weights, and one that likes to say `<SEG>`."""

from dataclasses import replace

import torch

from model.builders import build, tiny_config
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


def tiles(n: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    """(n, size, size, 3) uint8 random pictures with some structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 8, 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return (fine * 255).byte().permute(0, 2, 3, 1).contiguous()
