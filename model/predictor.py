"""The shipped segmenter: tiles and questions in, chains and masks out. Stateless between calls."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.checkpoint import CARD, CheckpointError, load_checkpoint, revision_of
from model.data.concepts import CONCEPTS
from model.decode import Answer, SlotDecoder
from model.pathchat import PathChatSegR1
from model.second_look import as_if_present, forced_states
from model.segmenter import SegmenterCard, TileAnswer, TileBatch
from model.tokenizer import SEG

CHECKPOINTS = Path(__file__).parent / "checkpoints"
MASK_CHUNK = 64
EVIDENCE = 2.0
"""Weight of the class logits beside the mask's; chosen among 0, 0.5, 1 and 2 by the grid benchmark."""
EVIDENCE_FOR = {c.phrase: "gland" if "gland" in c.parents else c.key for c in CONCEPTS.values()}
"""Which class speaks for a phrase: for the diagnoses of glands it is `gland`; which diagnosis is the chain's to say."""


@dataclass(frozen=True)
class _Wanted:
    """One mask to decode: for which tile of the batch, prompted by which state, saying what."""

    tile: int
    state: Tensor
    phrase: str
    token_probability: float


class PathChatPredictor:
    """PathChat-SegR1 behind the `Segmenter` protocol.

    Args:
        model: in evaluation mode.
        card: what it tells of itself.
        slots: rows that decode together.
        bf16: run the two image encoders in bfloat16; None asks the CPU whether that is fast.
    """

    def __init__(self, model: PathChatSegR1, card: SegmenterCard, slots: int = 16, bf16: bool | None = None):
        self.model = model.eval().requires_grad_(False)
        self.card = card
        self.decoder = SlotDecoder(model, slots)
        self.bf16 = _fast_bf16() if bf16 is None else bf16

    @torch.inference_mode()
    def predict(self, batch: TileBatch, cancelled: Callable[[], bool] | None = None) -> list[TileAnswer]:
        """Segment the query in each tile and say why.

        Args:
            batch: B tiles with one query each; images (B, H, W, 3) uint8.
            cancelled: polled between decoding steps.

        Returns:
            B answers; masks (K, H, W) float16 probabilities in the tile's frame.

        Raises:
            ValueError: H or W differs from the card's `tile_size_px`.
            InterruptedError: `cancelled` said so.

        Source: Liu et al. 2026, PathChat-SegR1, §3.1; Kirillov et al. 2023, §3.
        """
        size = self.card.tile_size_px
        if batch.images.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {batch.images.shape[1:]}: accepted are tiles of ({size}, {size}, 3)")
        images = torch.from_numpy(np.ascontiguousarray(batch.images))
        with self._encoding():
            seen = self.model.see(images)
        tokens, classes = seen.tokens.float(), seen.classes.float()
        decoded = self._decode(batch, tokens, cancelled)
        texts = [self.model.tokenizer.decode([self.model.tokenizer.think, *a.ids]) for a in decoded]
        wanted = self._emitted(texts, decoded)
        forced = self._forced(batch, tokens, texts, decoded)
        masks, confidence = self._masks(images, classes, wanted + forced)
        return self._answers(batch, texts, decoded, wanted + forced, masks, confidence, {w.tile for w in forced})

    def _encoding(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()

    def _decode(self, batch: TileBatch, tokens: Tensor, cancelled: Callable[[], bool] | None) -> list[Answer]:
        return self.decoder.decode(batch.queries, _scales(batch), tokens, cancelled)

    def _emitted(self, texts: list[str], decoded: list[Answer]) -> list[_Wanted]:
        wanted = []
        for tile, (text, answer) in enumerate(zip(texts, decoded, strict=True)):
            phrases = phrases_of(text)
            for k, state in enumerate(answer.states):
                wanted.append(_Wanted(tile, state, phrases[k], float(np.exp(answer.log_probs[k]))))
        return wanted

    def _forced(self, batch: TileBatch, tokens: Tensor, texts: list[str], decoded: list[Answer]) -> list[_Wanted]:
        """Masks for silent tiles that were asked again."""
        silent = [row for row in np.flatnonzero(batch.forced) if not len(decoded[row].states)]
        endings = {row: ending for row in silent if (ending := as_if_present(texts[row])) is not None}
        if not endings:
            return []
        rows, mpps = list(endings), _scales(batch)
        states = forced_states(
            self.model, [batch.queries[r] for r in rows], [mpps[r] for r in rows], tokens[rows],
            [endings[r][0] for r in rows],
        )  # fmt: skip
        return [_Wanted(r, s, endings[r][1], decoded[r].p_seg) for r, s in zip(rows, states, strict=True)]

    def _masks(self, images: Tensor, classes: Tensor, wanted: list[_Wanted]) -> tuple[np.ndarray, np.ndarray]:
        """Decode all masks of the batch together; MedSAM's encoder sees only tiles that have one.

        The mask decoder learned only from targets that are there, so on a tile that points by mistake it outlines what
        it can. The dense class head learned what is *not* the target too: its logits join the mask's.

        Returns:
            (M, H, W) float16 probabilities and (M,) float32 predicted IoU.
        """
        size = self.card.tile_size_px
        if not wanted:
            return np.zeros((0, size, size), np.float16), np.zeros(0, np.float32)
        tiles = sorted({w.tile for w in wanted})
        with self._encoding():
            features = [f.float() for f in self.model.survey(images[tiles])]
        index = torch.tensor([tiles.index(w.tile) for w in wanted])
        states = torch.stack([w.state for w in wanted])
        masks, ious = [], []
        for start in range(0, len(wanted), MASK_CHUNK):
            part = slice(start, start + MASK_CHUNK)
            logits, iou = self.model.decode_masks(features, index[part], states[part])
            logits = logits[:, None].float() + EVIDENCE * self._evidence(classes, wanted[part], logits.shape[-1])
            logits = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
            masks.append(logits[:, 0].sigmoid().to(torch.float16).numpy())
            ious.append(iou.float().clamp(0, 1).numpy())
        return np.concatenate(masks), np.concatenate(ious)

    def _evidence(self, classes: Tensor, wanted: list[_Wanted], edge: int) -> Tensor:
        """Class logits of each mask's target, (M, 1, edge, edge); zero where the phrase names no taught concept."""
        grid, columns = self.model.config.patch_grid, self.model.config.dense_classes
        maps = [
            classes[w.tile, :, columns.index(key)].view(1, grid, grid)
            if (key := EVIDENCE_FOR.get(w.phrase)) in columns
            else classes.new_zeros(1, grid, grid)
            for w in wanted
        ]
        return F.interpolate(torch.stack(maps).clamp(-6, 6), (edge, edge), mode="bilinear", align_corners=False)

    def _answers(
        self,
        batch: TileBatch,
        texts: list[str],
        decoded: list[Answer],
        wanted: list[_Wanted],
        masks: np.ndarray,
        ious: np.ndarray,
        forced: set[int],
    ) -> list[TileAnswer]:
        answers = []
        for tile, text in enumerate(texts):
            own = [m for m, w in enumerate(wanted) if w.tile == tile]
            answers.append(
                TileAnswer(
                    text=text,
                    masks=masks[own],
                    phrases=tuple(wanted[m].phrase for m in own),
                    confidence=np.array([ious[m] * wanted[m].token_probability for m in own], np.float32),
                    p_seg=decoded[tile].p_seg,
                    forced=tile in forced,
                )
            )
        return answers


def phrases_of(text: str) -> list[str]:
    """The target phrase before each `<SEG>`: what stands between it and the last colon, semicolon or full stop."""
    parts = text.split(SEG)[:-1]
    return [part.replace(";", ":").replace(".", ":").split(":")[-1].strip(" ,") for part in parts]


def load_segmenter(name: str = "tiny") -> PathChatPredictor:
    """The shipped model by name, or any checkpoint folder by its path.

    Raises:
        CheckpointError: no such model; the message says which are installed.
    """
    folder = CHECKPOINTS / name if (CHECKPOINTS / name).is_dir() else Path(name)
    if not (folder / "config.json").is_file():
        installed = sorted(p.parent.name for p in CHECKPOINTS.glob("*/config.json"))
        raise CheckpointError(f"model {name!r}: no such checkpoint; installed are {installed}, or give a folder")
    model = load_checkpoint(folder)
    told = json.loads((folder / CARD).read_text()) if (folder / CARD).is_file() else {}
    card = SegmenterCard(
        name=model.config.name,
        revision=revision_of(folder),
        tile_size_px=model.config.tile_px,
        default_mpp=model.config.default_mpp,
        targets=model.config.targets,
        licence=told.get("licence", "Apache-2.0"),
        parameters=sum(p.numel() for p in model.parameters()),
        figures=told.get("figures", {}),
    )
    return PathChatPredictor(model, card)


def _scales(batch: TileBatch) -> list[float | None]:
    """µm/px of each tile, None where unknown."""
    return [float(mpp) if np.isfinite(mpp) else None for mpp in batch.mpp]


def _fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; `SLIDEREASON_BF16` = 0 or 1 decides otherwise."""
    told = os.environ.get("SLIDEREASON_BF16")
    if told is not None:
        return told == "1"
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
