"""Stage `ssl`: stain-invariant self-distillation of MedSAM's encoder and of the pathology encoder.

Trains: both encoders; what only this stage needs (mask tokens, reconstruction heads) is in `Ssl.modules`. Data: every
shippable scene, without its labels. Loss: Eq. 1 for each encoder,

    L_SSL = α/N · Σ_i Cos(s_i1, s_i2) · ‖z_i^a − z_i^b‖² + L_MAE.

Each picture is seen in two virtual stains a and b that share one geometry. s are their templates, z-scored, and Cos is
the distance 1 − cos: the wider the stains are apart, the more a difference of embeddings costs. z are embeddings of the
unmasked views: what later stages read of an encoder, the final patch tokens or MedSAM's feature map, place by place
(`dense`, which is what masks are decoded from), or their mean over the picture (`pooled`). Gradients pass through both.

The norm alone would reward embeddings that shrink, and at length 1 a large common offset would do the same. So z is
standardised over the batch, see `embeddings`: what counts is the difference that stain makes *relative* to the one that
tissue makes. Against z that say few things of tissue stands L_MAE: view a is seen once more with three quarters of its
patches masked, and the encoder must say what is there. The figure `rank` tells how many directions z fill.

Source: Liu et al. 2026, PathChat-SegR1, Eq. 1; Shen et al. 2022, RandStainNA; He et al. 2021, Masked autoencoders;
the standardisation: Zbontar et al. 2021, Barlow Twins, §2.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import PathChatConfig
from model.data.stain import StainStatistics, fit_stain_statistics, rand_stain_na, template_of, z_score
from model.pathchat import PathChatSegR1
from model.pixels import for_sam, normalise, resize
from model.training.losses import dense_class_loss
from model.training.mae import MaskedHead, draw_masks, fill_hidden, mae_loss, patch_targets
from model.training.pools import ScenePool
from model.training.pretrain import dense_targets

MATCHES = ("dense", "pooled")
ENOUGH = 4000
"""Scenes of a part that tell its stains."""


@dataclass(frozen=True)
class SslBatch:
    """B pictures in two stains.

    Attributes:
        images_a, images_b: (B, T, T, 3) uint8, the same tissue at the same places.
        stains_a, stains_b: (B, 6) float32, their z-scored templates.
        hidden_pathology, hidden_sam: (M, g, g) bool on each encoder's grid, masked patches of view a of the first M.
        target, known: as `pretrain.dense_targets` gives them, or None where no classes are kept.
    """

    images_a: Tensor
    images_b: Tensor
    stains_a: Tensor
    stains_b: Tensor
    hidden_pathology: Tensor
    hidden_sam: Tensor
    target: Tensor | None
    known: Tensor | None


def stain_consistency(z_a: Tensor, z_b: Tensor, s1: Tensor, s2: Tensor, alpha: float) -> Tensor:
    """α/N · Σ_i Cos(s_i1, s_i2) · ‖z_i^a − z_i^b‖², the first term of Eq. 1.

    Args:
        z_a, z_b: (B, D) one embedding a picture, or (B, N, D) one a place; places are averaged.
        s1, s2: (B, 6) z-scored templates; Cos is 1 − cos, in [0, 2].
        alpha: weight of the term.
    """
    apart = 1 - F.cosine_similarity(s1.float(), s2.float(), dim=-1)
    squares = (z_a.float() - z_b.float()).square().sum(-1)
    return alpha * (apart * squares.reshape(len(apart), -1).mean(1)).mean()


def embeddings(tokens: Tensor, match: str) -> tuple[Tensor, Tensor]:
    """The z^a and z^b of Eq. 1, standardised over the batch.

    What all pictures show at a place is subtracted, then each channel is divided by the standard deviation of what is
    left, and all by √D: no shrinking, offset or mere sense of place brings the views nearer. ‖z‖² is 1 and ‖z^a − z^b‖²
    at most 4 on average, and 2 where the two views have nothing in common, whatever the width.

    Args:
        tokens: (2B, N, D), B pictures in stain a, then in stain b; B ≥ 2.
        match: `dense` or `pooled`.

    Returns:
        Two of (B, N, D) float32; N is 1 for `pooled`.
    """
    z = tokens.float()
    if match == "pooled":
        z = z.mean(1, keepdim=True)
    z = z - z.mean(0, keepdim=True)
    z = z / (z.square().mean((0, 1)) * z.shape[-1] + 1e-8).sqrt()
    return z.chunk(2)


def rank_of(z: Tensor) -> float:
    """How many directions (B, N, D) fill, (Σλ)² / Σλ² of their covariance: D at best, 1 where all has collapsed."""
    z = z.detach().flatten(0, 1)
    with torch.autocast(z.device.type, enabled=False):
        covariance = z.T @ z
    return float(covariance.trace() ** 2 / covariance.square().sum().clamp_min(1e-12))


def pool_statistics(pool: ScenePool, most: int = ENOUGH) -> StainStatistics:
    """Stains of a pool's real scenes, each once; of synthetic ones, whose stain is made up, where it has no others.

    Of a part with more than `most` scenes as many are read, evenly spaced; none is kept, as a built set may be large.
    """
    real = [name for name in pool.names if name != "synthetic"] or pool.names

    def images() -> Iterator[np.ndarray]:
        met = set()
        for part in (part for name in real for part in pool.groups[name]):
            for place in np.unique(np.linspace(0, len(part) - 1, min(most, len(part))).round().astype(int)):
                scene = part[int(place)]
                if (scene.source, scene.id) not in met:
                    met.add((scene.source, scene.id))
                    yield scene.image

    return fit_stain_statistics(images())


@dataclass
class Ssl:
    """See the module's docstring.

    Attributes:
        pool: where pictures are drawn from.
        statistics: of the pool's stains, see `pool_statistics`.
        config: of the model that is trained.
        batch_size: pictures a step; each is seen in two stains.
        seed: of the batches, and of what `modules` starts from.
        alpha: α of Eq. 1.
        mask_ratio: share of patches that are masked.
        mae_share: share of the pictures that are also seen masked; less is faster.
        match: what z are, `dense` or `pooled`.
        spread: widens the distributions that stains are drawn from.
        keep_classes: weight of the dense class loss in both stains, where a checkpoint with a trained class head goes
            on: what it was taught is then not forgotten. 0 leaves it out, and the labels unread.

    Raises:
        ValueError: a word or number that is not accepted, or classes are to be kept that the model does not have.
    """

    pool: ScenePool
    statistics: StainStatistics
    config: PathChatConfig
    batch_size: int
    seed: int
    alpha: float = 1.0
    mask_ratio: float = 0.75
    mae_share: float = 1.0
    match: str = "dense"
    spread: float = 1.0
    keep_classes: float = 0.0
    name: str = "ssl"
    heads: nn.ModuleDict = field(init=False, repr=False)

    def __post_init__(self):
        if self.match not in MATCHES:
            raise ValueError(f"ssl.match={self.match!r}: accepted are {list(MATCHES)}")
        if self.batch_size < 2:
            raise ValueError(f"ssl.batch_size={self.batch_size}: at least 2 is accepted, z is standardised over them")
        for name in ("mask_ratio", "mae_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"ssl.{name}={getattr(self, name)}: accepted is more than 0 and at most 1")
        if self.keep_classes and not self.config.dense_classes:
            raise ValueError(f"ssl.keep_classes={self.keep_classes}: the model has no dense classes; accepted is 0")
        vision, sam = self.config.vision, self.config.sam
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.heads = nn.ModuleDict({
                "pathology": MaskedHead(vision.dim, vision.dim, vision.patch_px),
                "sam": MaskedHead(sam.dim, sam.out_dim, sam.patch_px),
            })  # fmt: skip

    def modules(self) -> nn.ModuleDict:
        """Mask tokens and reconstruction heads: trained beside the model, and left behind when the stage is done."""
        return self.heads

    def parameters(self, model: PathChatSegR1) -> list[nn.Parameter]:
        """Both encoders, all weights, and the class head where classes are kept."""
        head = list(model.dense_head.parameters()) if self.keep_classes else []
        return [*model.sam_encoder.parameters(), *model.pathology_encoder.parameters(), *head]

    def batch(self, index: int) -> SslBatch:
        """Pictures in two stains each, and which patches are masked; a pure function of the seed and `index`."""
        rng = np.random.default_rng([self.seed, 5, index])
        views = [self.pool.view(self.pool.pick(rng), rng, restained=False) for _ in range(self.batch_size)]
        stained = [[rand_stain_na(v.image, self.statistics, rng, self.spread) for v in views] for _ in "ab"]
        stains = [z_score(np.stack([template_of(i) for i in images]), self.statistics) for images in stained]
        c = self.config
        grids = c.patch_grid, c.sam_px // c.sam.patch_px
        masked = max(1, round(self.mae_share * len(views)))
        hidden = [draw_masks(rng, masked, grid, self.mask_ratio) for grid in grids]
        kept = dense_targets(views, c.dense_classes, c.patch_grid) if self.keep_classes else (None, None)
        return SslBatch(
            *(torch.from_numpy(np.stack(images)) for images in stained),
            *(torch.from_numpy(stain.astype(np.float32)) for stain in stains),
            *(torch.from_numpy(mask) for mask in hidden),
            *(None if array is None else torch.from_numpy(array) for array in kept),
        )

    def loss(self, model: PathChatSegR1, batch: SslBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Eq. 1, summed over both encoders."""
        images = torch.cat([batch.images_a, batch.images_b])
        parts: dict[str, Tensor] = {}
        figures: dict[str, float] = {}
        for name, hidden in (("pathology", batch.hidden_pathology), ("sam", batch.hidden_sam)):
            pixels = _pixels(model, name, images)
            tokens = _encode(model, name, pixels)  # [2B, N, C]
            z_a, z_b = embeddings(tokens, self.match)
            parts[f"{name}_stain"] = stain_consistency(z_a, z_b, batch.stains_a, batch.stains_b, self.alpha)
            figures[f"{name}_rank"] = rank_of(z_a)
            parts[f"{name}_mae"] = self._reconstruct(model, name, pixels[: len(hidden)], hidden)
            if self.keep_classes and name == "pathology":
                target, known = (torch.cat([part, part]) for part in (batch.target, batch.known))
                parts["dense"] = self.keep_classes * dense_class_loss(model.dense_head(tokens), target, known)
        total = torch.stack(list(parts.values())).sum()
        figures |= {"loss": float(total.detach())} | {name: float(part.detach()) for name, part in parts.items()}
        return total, figures

    def _reconstruct(self, model: PathChatSegR1, name: str, pixels: Tensor, hidden: Tensor) -> Tensor:
        """L_MAE of one encoder on one view."""
        patch_px = pixels.shape[-1] // hidden.shape[-1]
        return mae_loss(self.predict(model, name, pixels, hidden), patch_targets(pixels, patch_px), hidden)

    def predict(self, model: PathChatSegR1, name: str, pixels: Tensor, hidden: Tensor) -> Tensor:
        """What an encoder says of its picture's patches, without having seen those that are masked.

        Args:
            model: holds the encoder.
            name: `pathology` or `sam`.
            pixels: (B, 3, E, E), as that encoder takes them.
            hidden: (B, g, g) bool, on its grid.

        Returns:
            (B, g², 3·p²), see `patch_targets`.
        """
        head = self.heads[name]
        with head.standing_in(_last_of_stem(model, name), hidden):
            tokens = _encode(model, name, fill_hidden(pixels, hidden))
        return head.predict(tokens)


def _pixels(model: PathChatSegR1, name: str, images: Tensor) -> Tensor:
    """(B, T, T, 3) uint8 → what an encoder takes, resized and normalised as when the model serves."""
    c = model.config
    if name == "sam":
        return for_sam(images, c.sam_px, c.sam.scheme, c.mean, c.std).to(model.dtype)
    return normalise(resize(images, c.vision_px), c.mean, c.std).to(model.dtype)


def _encode(model: PathChatSegR1, name: str, pixels: Tensor) -> Tensor:
    """(B, 3, E, E) → (B, N, C): patch tokens, or the feature map that masks are decoded from."""
    if name == "sam":
        return model.sam_encoder(pixels)[0].flatten(2).transpose(1, 2)
    return model.pathology_encoder(pixels)


def _last_of_stem(model: PathChatSegR1, name: str) -> nn.Module:
    if name == "sam":
        return model.sam_encoder.vit.patch_embed.project
    return model.pathology_encoder.vit.embeddings.patch_embeddings.stem.project
