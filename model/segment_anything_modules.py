"""segment-anything's modules without torchvision, which its package file would import and which has no CPU wheel."""

import importlib.util
import sys
from types import ModuleType


def _register_bare_package() -> None:
    """Put `segment_anything` into `sys.modules` as a bare package, so that only `segment_anything.modeling` loads."""
    if "segment_anything" in sys.modules:
        return
    spec = importlib.util.find_spec("segment_anything")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("segment-anything is not installed; install the extra slidereason[worker]")
    package = ModuleType("segment_anything")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["segment_anything"] = package


_register_bare_package()

from segment_anything.modeling.common import LayerNorm2d  # noqa: E402
from segment_anything.modeling.image_encoder import (  # noqa: E402
    Block,
    ImageEncoderViT,
    window_partition,
    window_unpartition,
)
from segment_anything.modeling.mask_decoder import MaskDecoder  # noqa: E402
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom  # noqa: E402
from segment_anything.modeling.transformer import TwoWayTransformer  # noqa: E402

__all__ = [
    "Block",
    "ImageEncoderViT",
    "LayerNorm2d",
    "MaskDecoder",
    "PositionEmbeddingRandom",
    "TwoWayTransformer",
    "window_partition",
    "window_unpartition",
]
