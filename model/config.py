"""The numbers of a model, frozen. Wiring lives in `builders`, maths in the parts; derived values are properties."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class VisionConfig:
    """The pathology encoder: a DINOv2-style ViT.

    Attributes:
        dim, depth, heads, mlp_ratio: shape of the ViT.
        patch_px: pixels per patch token.
        stem: `conv` (strided 3×3 convolutions) or `patch` (one-step patch embedding).
        stem_channels: channels at stride 2, 4, 8 and 16 of the convolutional stem.
        merge: patch tokens are merged `merge`×`merge` into one image token.
        layer_scale: initial value of DINOv2's LayerScale.
        drop_path: stochastic depth while training.
    """

    dim: int = 256
    depth: int = 5
    heads: int = 4
    mlp_ratio: int = 3
    patch_px: int = 16
    stem: str = "conv"
    stem_channels: tuple[int, ...] = (32, 64, 128, 192)
    merge: int = 2
    layer_scale: float = 0.1
    drop_path: float = 0.1


@dataclass(frozen=True)
class LanguageConfig:
    """The Qwen2.5-VL language model."""

    dim: int = 256
    depth: int = 5
    heads: int = 4
    kv_heads: int = 2
    mlp_dim: int = 768
    mrope_section: tuple[int, int, int] = (8, 12, 12)
    vocabulary: int = 1536


@dataclass(frozen=True)
class SamConfig:
    """The SAM image encoder with adapters, and the mask decoder."""

    dim: int = 192
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 2.0
    window: int = 0
    global_blocks: tuple[int, ...] = ()
    patch_px: int = 16
    stem: str = "conv"
    stem_channels: tuple[int, ...] = (32, 64, 96, 128)
    adapter_ratio: float = 0.25
    out_dim: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4
    decoder_mlp_dim: int = 512
    multimask_outputs: int = 0
    high_res: bool = True


@dataclass(frozen=True)
class PathChatConfig:
    """A whole PathChat-SegR1.

    Attributes:
        name: variant, e.g. `tiny`.
        tile_px: edge of the square tiles the model takes.
        default_mpp: µm/px it works best at.
        mean, std: fixed normalisation of RGB in [0, 1]; part of the checkpoint, never a constant of the code.
        seg_state: `self` uses the hidden state at `<SEG>`, `predict` the one that predicts it.
        adapter: `mlp` or `bottleneck`.
        dense_classes: concept keys of the dense class head on the patch tokens, in order.
        targets: names of everything taught, for `GET /v1/models`.
        max_answer_tokens: decoding stops there.
    """

    name: str = "tiny"
    tile_px: int = 224
    default_mpp: float = 1.0
    mean: tuple[float, float, float] = (0.68, 0.55, 0.70)
    std: tuple[float, float, float] = (0.22, 0.25, 0.20)
    seg_state: str = "self"
    adapter: str = "mlp"
    dense_classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    max_answer_tokens: int = 112
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    sam: SamConfig = field(default_factory=SamConfig)

    @property
    def patch_grid(self) -> int:
        """Patch tokens along one edge of a tile."""
        return self.tile_px // self.vision.patch_px

    @property
    def image_grid(self) -> int:
        """Image tokens along one edge of a tile, after merging."""
        return self.patch_grid // self.vision.merge

    @property
    def image_tokens(self) -> int:
        """Image tokens of one tile."""
        return self.image_grid**2

    @property
    def mask_px(self) -> int:
        """Edge of the decoder's mask before it is resized to the tile."""
        return 4 * self.tile_px // self.sam.patch_px

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PathChatConfig":
        """Rebuild from `to_json`'s dict; lists become tuples again."""

        def part(kind: type, values: dict[str, Any]) -> Any:
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

        data = dict(data)
        parts = {
            "vision": part(VisionConfig, data.pop("vision")),
            "language": part(LanguageConfig, data.pop("language")),
            "sam": part(SamConfig, data.pop("sam")),
        }
        return part(cls, data | parts)
