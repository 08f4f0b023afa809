"""The numbers of a model, frozen. Wiring lives in `builders`, maths in the parts; derived values are properties."""

from dataclasses import asdict, dataclass, field
from typing import Any

STEMS = ("conv", "patch")
SCHEMES = ("fixed", "medsam", "sam")
PROMPTS = ("plain", "qwen")


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
        image_px: edge of what it sees of a tile (resized to it); None means the tile's own size.
        pos_px: edge that its position embeddings were trained at; None means `image_px`. Where they differ, the
            embeddings are interpolated bicubically.
        pos_antialias: how: as timm and DINOv2 with registers do, or, False, as the first DINOv2 does.
        registers: register tokens beside CLS (DINOv2 with registers).
        swiglu: SwiGLU instead of the plain MLP.
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
    image_px: int | None = None
    pos_px: int | None = None
    pos_antialias: bool = True
    registers: int = 0
    swiglu: bool = False


@dataclass(frozen=True)
class LanguageConfig:
    """The Qwen2.5-VL language model.

    Attributes:
        dim, depth, heads, kv_heads, mlp_dim, vocabulary: its shape.
        mrope_section: how the halves of a head's dimensions are shared by time, row and column.
        rope_theta, rms_eps: constants of its positions and norms; Qwen2.5-VL's own are 1e6 and 1e-6.
        tied: the output layer is the word embedding again.
    """

    dim: int = 256
    depth: int = 5
    heads: int = 4
    kv_heads: int = 2
    mlp_dim: int = 768
    mrope_section: tuple[int, int, int] = (8, 12, 12)
    vocabulary: int = 1536
    rope_theta: float = 10_000.0
    rms_eps: float = 1e-5
    tied: bool = True


@dataclass(frozen=True)
class SamConfig:
    """The SAM image encoder with adapters, and the mask decoder.

    Attributes:
        dim, depth, heads, mlp_ratio, window, global_blocks, patch_px, rel_pos: shape of the image encoder; window 0
            means that every block looks everywhere.
        stem, stem_channels: as in `VisionConfig`.
        adapter_ratio: hidden width of the adapters; 0 leaves them out.
        out_dim, decoder_depth, decoder_heads, decoder_mlp_dim, multimask_outputs: the decoder's.
        high_res: finer features join while upscaling (SAM 2).
        image_px: edge of what it sees of a tile; None means the tile's own size.
        scheme: how pixels are resized and normalised, see `model.pixels`: `fixed` by the config's mean and std,
            `medsam` by each tile's least and most, `sam` by SAM's mean and std.
        norm_eps: constant of the image encoder's norms; SAM's own is 1e-6.
    """

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
    image_px: int | None = None
    rel_pos: bool = False
    scheme: str = "fixed"
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class PathChatConfig:
    """A whole PathChat-SegR1.

    Attributes:
        name: variant, e.g. `tiny`.
        tile_px: edge of the square tiles the model takes.
        default_mpp: µm/px it works best at.
        mean, std: fixed normalisation of RGB in [0, 1]; part of the checkpoint, never a constant of the code.
        seg_state: `self` uses the hidden state at `<SEG>`, `predict` the one that predicts it.
        adapter: `mlp`, `bottleneck`, or `linear`, which the ablations compare with.
        dense_classes: concept keys of the dense class head on the patch tokens, in order; without any, no head.
        targets: names of everything taught, for `GET /v1/models`.
        max_answer_tokens: decoding stops there.
        prompt: `plain`, or `qwen` for the turns that Qwen2.5-VL was trained on.
        calibration: slope and offset that turn log-odds of a mask's raw confidence into calibrated ones; None where
            nobody has measured them, or found that none are needed.
        calibration_by_exemplar: the same for masks that were asked for by an exemplar.

    Raises:
        ValueError: a word or a size that no part takes; the message names its field and what is accepted.
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
    prompt: str = "plain"
    calibration: tuple[float, float] | None = None
    calibration_by_exemplar: tuple[float, float] | None = None
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    sam: SamConfig = field(default_factory=SamConfig)

    def __post_init__(self):
        for name, value, accepted in (
            ("vision.stem", self.vision.stem, STEMS),
            ("sam.stem", self.sam.stem, STEMS),
            ("sam.scheme", self.sam.scheme, SCHEMES),
            ("prompt", self.prompt, PROMPTS),
        ):
            if value not in accepted:
                raise ValueError(f"{name}={value!r}: accepted are {list(accepted)}")
        for name, edge_px, step_px in (
            ("vision.image_px", self.vision_px, self.vision.patch_px * self.vision.merge),
            ("vision.pos_px", self.vision.pos_px or 0, self.vision.patch_px),
            ("sam.image_px", self.sam_px, self.sam.patch_px),
        ):
            if edge_px % step_px:
                raise ValueError(f"{name}={edge_px}: accepted are multiples of {step_px} px")

    @property
    def vision_px(self) -> int:
        """Edge of what the pathology encoder sees of a tile."""
        return self.vision.image_px or self.tile_px

    @property
    def sam_px(self) -> int:
        """Edge of what MedSAM's encoder sees of a tile."""
        return self.sam.image_px or self.tile_px

    @property
    def patch_grid(self) -> int:
        """Patch tokens along one edge of a tile."""
        return self.vision_px // self.vision.patch_px

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
        return 4 * self.sam_px // self.sam.patch_px

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
