"""PathChat-SegR1: the figure of the paper, top to bottom.

A pathology encoder and a language model read the tile and reason about it; when the language model emits `<SEG>`, its
hidden state passes the Seg-Adapter and prompts MedSAM's decoder over MedSAM's own view of the same tile.

Source: Liu et al. 2026, PathChat-SegR1, ICLR, Fig. 1 and §3.1.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from model.appearance import appearance
from model.config import PathChatConfig
from model.matcher import FINER, Matcher
from model.medsam import BatchedMaskDecoder, SamImageEncoder
from model.pixels import for_sam, normalise, resize
from model.seg_adapter import build_seg_adapter
from model.tokenizer import PathTokenizer
from model.vision import PathologyEncoder, Projector
from model.vlm import LanguageModel


@dataclass(frozen=True)
class Seen:
    """What the pathology encoder saw in B tiles.

    Attributes:
        patches: (B, N, D) patch tokens.
        classes: (B, N, C) dense class logits; C is 0 without a dense class head.
        tokens: (B, n, H) image tokens.
        looks: (B, c, MEASURES) how the cells of the tile look, see `model.appearance`.
    """

    patches: Tensor
    classes: Tensor
    tokens: Tensor
    looks: Tensor

    def rows(self, index: Tensor | list[int]) -> "Seen":
        """Some of the tiles, in that order."""
        return Seen(*(getattr(self, part.name)[index] for part in fields(self)))

    @classmethod
    def join(cls, parts: "list[Seen]") -> "Seen":
        """Several batches as one."""
        return cls(*(torch.cat([getattr(part, name.name) for part in parts]) for name in fields(cls)))


@dataclass(frozen=True)
class Reminded:
    """What an exemplar changes about B tiles: what they look like beside it, and what it looks like itself.

    Attributes:
        tokens: (B, n, H) the tiles' image tokens, told where they match the exemplar.
        reference: (B, n, H) the exemplar's own image tokens, for `<ref>`.
        memory: (B, H) what lies under its outline, for `<MEM>`.
        match: (B, 4, h, w) where the tiles match it, for the mask decoder.
    """

    tokens: Tensor
    reference: Tensor
    memory: Tensor
    match: Tensor


class PathChatSegR1(nn.Module):
    """Reads tiles, reasons about a query, and points with `<SEG>`."""

    def __init__(self, config: PathChatConfig, tokenizer: PathTokenizer):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.pathology_encoder = PathologyEncoder(config.vision, config.vision_px)
        self.projector = Projector(config.vision.dim, config.language.dim, config.vision.merge)
        self.language_model = LanguageModel(config.language)
        self.sam_encoder = SamImageEncoder(config.sam, config.sam_px)
        self.seg_adapter = build_seg_adapter(config.adapter, config.language.dim, config.sam.out_dim)
        self.mask_decoder = BatchedMaskDecoder(config.sam)
        self.memory = nn.Linear(config.vision.dim, config.language.dim)
        self.matcher = Matcher(config.vision.dim, config.language.dim, config.vision.merge)
        self.emission_head = nn.Linear(config.language.dim, 1)
        classes = len(config.dense_classes)
        self.dense_head = nn.Linear(config.vision.dim, classes) if classes else None
        self.evidence = nn.Linear(3 * classes, config.language.dim) if classes else None

    @property
    def device(self) -> torch.device:
        """Where the language model computes."""
        return self.emission_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the language model computes in."""
        return self.emission_head.weight.dtype

    def see(self, images: Tensor, plain: Tensor | None = None) -> Seen:
        """(B, T, T, 3) uint8 → what the language model sees of them.

        `plain` are the same pictures without the outline that is drawn on exemplars, for how they look.
        """
        pixels = normalise(resize(images, self.config.vision_px), self.config.mean, self.config.std)
        bare = pixels
        if plain is not None:
            bare = normalise(resize(plain, self.config.vision_px), self.config.mean, self.config.std)
        looks = appearance(bare, self.config.vision.patch_px // FINER)
        patches = self.pathology_encoder(pixels.to(self.dtype))
        if self.dense_head is None:
            return Seen(patches, patches.new_zeros(*patches.shape[:2], 0), self.projector(patches), looks)
        classes = self.dense_head(patches)
        return Seen(patches, classes, self.projector(patches) + self._evidence(classes), looks)

    def _evidence(self, classes: Tensor) -> Tensor:
        """What the dense class head says of each place and of the whole tile, for the language model to read.

        Not in the paper, whose encoder was pretrained on far more: measured, `tiny` learns which diagnosis it sees much
        sooner when the evidence is handed to it than when it must be found in the patch tokens again.
        """
        b, n, c = classes.shape
        grid, m = self.config.patch_grid, self.config.vision.merge
        here = classes.view(b, grid // m, m, grid // m, m, c).mean((2, 4)).flatten(1, 2)  # [B, n, C]
        whole = torch.cat([classes.mean(1), classes.amax(1)], -1)[:, None].expand(-1, here.shape[1], -1)
        return self.evidence(torch.cat([here, whole], -1) / 4)

    def survey(self, images: Tensor) -> list[Tensor]:
        """(B, T, T, 3) uint8 → MedSAM's features, from which masks are decoded."""
        c = self.config
        return self.sam_encoder(for_sam(images, c.sam_px, c.sam.scheme, c.mean, c.std).to(self.dtype))

    def remember(self, patches: Tensor, mask: Tensor) -> Tensor:
        """Pool an exemplar's patch tokens under its outline.

        Args:
            patches: (B, N, D) patch tokens of the reference.
            mask: (B, H, W) in [0, 1], its outline.

        Returns:
            (B, H) one `<MEM>` token each.
        """
        weight = self._on_patches(mask)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-6)
        return self.memory(torch.einsum("bn,bnd->bd", weight.to(patches.dtype), patches))

    def remind(self, seen: Seen, shown: Seen, outlines: Tensor) -> Reminded:
        """Show each of B tiles its exemplar; no weight changes.

        Args:
            seen: the tiles.
            shown: B exemplars, their outline drawn on them, but not on what their `looks` were measured on.
            outlines: (B, H, W) in [0, 1], the exemplars' outlines.

        Returns:
            What the language model and the mask decoder take instead of, and besides, what they take without one.
        """
        match = self.matcher((seen.looks, seen.patches), (shown.looks, shown.patches), outlines)  # [B, 4, h, w]
        return Reminded(
            tokens=seen.tokens + self.matcher.told(match, self.config.image_grid),
            reference=shown.tokens,
            memory=self.remember(shown.patches, outlines),
            match=match,
        )

    def _on_patches(self, mask: Tensor) -> Tensor:
        """(B, H, W) → (B, N): the share of each patch that lies under a mask."""
        return nn.functional.adaptive_avg_pool2d(mask[:, None].float(), self.config.patch_grid).flatten(1)

    def embed(self, ids: Tensor, tokens: Tensor | None, ref: Tensor | None = None, mem: Tensor | None = None) -> Tensor:
        """Token ids with image tokens put in their places.

        Args:
            ids: (B, L) int64.
            tokens: (B, n, H) image tokens for the `<image>` places, or None when there are none.
            ref, mem: (B, n, H) and (B, H) of an exemplar for `<ref>` and `<MEM>`, or None.

        Returns:
            (B, L, H).
        """
        embeds = self.language_model.embed(ids)
        for token_id, values in ((self.tokenizer.image, tokens), (self.tokenizer.ref, ref), (self.tokenizer.mem, mem)):
            if values is not None:
                place = (ids == token_id)[..., None].expand_as(embeds)
                embeds = embeds.masked_scatter(place, values.to(embeds.dtype))
        return embeds

    def seg_states(self, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The states that prompt masks in a teacher-forced pass.

        Args:
            states: (B, L, H) final-norm states.
            ids: (B, L).

        Returns:
            (M, H) states in order of row and place, and (M,) their rows.
        """
        rows, places = torch.nonzero(ids == self.tokenizer.seg, as_tuple=True)
        if self.config.seg_state == "predict":
            places = places - 1
        return states[rows, places], rows

    def decode_masks(
        self, features: list[Tensor], image_index: Tensor, states: Tensor, match: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(M, H) `<SEG>` states → mask logits (M, mask_px, mask_px) and predicted IoU (M,).

        `match` (M, 4, h, w) tells where each mask's tile looks like the exemplar; zeros where it was asked without one.
        """
        return self.mask_decoder(features, image_index, self.seg_adapter(states), match)
