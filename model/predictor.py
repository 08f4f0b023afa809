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

from model.builders import dtype_on, fast_bf16
from model.checkpoint import CARD, CheckpointError, load_checkpoint, revision_of
from model.data.concepts import CONCEPTS
from model.data.stain_shift import read_stain_file
from model.decode import Answer, SlotDecoder
from model.matcher import CHANNELS, FINER
from model.pathchat import PathChatSegR1, Seen
from model.questions import Questions, Shown
from model.second_look import as_if_present, forced_states
from model.segmenter import SegmenterCard, TileAnswer, TileBatch
from model.stages import Stopwatch
from model.surveyor import Surveyor
from model.tokenizer import SEG

CHECKPOINTS = Path(__file__).parent / "checkpoints"
MASK_CHUNK = 64
SEE_CHUNK = {"cpu": 8, "cuda": 32}
"""Most pictures in one pass of the pathology encoder: on a CPU as many as its caches hold."""
EVIDENCE = 2.0
"""Weight of the class logits beside the mask's; chosen among 0, 0.5, 1 and 2 by the grid benchmark."""
EVIDENCE_FOR = {c.phrase: c.key for c in CONCEPTS.values() if "gland" not in c.parents}
"""Which class speaks for a phrase. None does for a diagnosis of glands: which one it is, the chain says, and `gland`,
which once stood for all of them, tore holes and rough edges into masks that were right."""


@dataclass(frozen=True)
class _Wanted:
    """One mask to decode: for which row of the batch, prompted by which state, saying what."""

    row: int
    state: Tensor
    phrase: str
    token_probability: float


@dataclass(frozen=True)
class _Look:
    """A batch as the language model and the mask decoder see it.

    Attributes:
        pictures: (B,) which of the U different pictures each row is about.
        images: (U, H, W, 3) uint8; classes: (U, N, C) dense class logits.
        questions: B rows' queries, scales, image tokens and exemplars, as `Questions.build` takes them.
        match: (B, 4, h, w) where each row's tile looks like its exemplar; None where no row has one.
    """

    pictures: list[int]
    images: Tensor
    classes: Tensor
    questions: dict
    match: Tensor | None


class PathChatPredictor:
    """PathChat-SegR1 behind the `Segmenter` protocol.

    Args:
        model: in evaluation mode, on its device.
        card: what it tells of itself.
        slots: rows that decode together; None fits them to the free memory.
        bf16: on a CPU, run the two image encoders in bfloat16; None asks whether that is fast there.
        stopwatch: told of `see`, `prefill`, `steps`, `survey` and `masks`.
    """

    def __init__(
        self,
        model: PathChatSegR1,
        card: SegmenterCard,
        slots: int | None = None,
        bf16: bool | None = None,
        stopwatch: Stopwatch | None = None,
    ):
        self.model = model.eval().requires_grad_(False)
        self.card = card
        self.stopwatch = stopwatch or Stopwatch()
        self.decoder = SlotDecoder(model, slots, self.stopwatch)
        self.see_chunk = SEE_CHUNK[model.device.type]
        self.bf16 = model.device.type == "cpu" and (fast_bf16() if bf16 is None else bf16)

    @torch.inference_mode()
    def predict(
        self, batch: TileBatch, cancelled: Callable[[], bool] | None = None, script: Tensor | None = None
    ) -> list[TileAnswer]:
        """Segment the query in each tile and say why.

        Args:
            batch: B tiles with one query each; images (B, H, W, 3) uint8. The same picture twice is encoded once.
            cancelled: polled between decoding steps.
            script: (B, L) tokens to say instead of the likeliest; see `SlotDecoder.decode`.

        Returns:
            B answers; masks (K, H, W) float16 probabilities in the tile's frame.

        Raises:
            ValueError: H or W, of a tile or an exemplar, differs from the card's `tile_size_px`.
            InterruptedError: `cancelled` said so.
            MemoryError: not even one tile fits.

        Source: Liu et al. 2026, PathChat-SegR1, §3.1; Kirillov et al. 2023, §3.
        """
        self._check(batch)
        look = self._look(batch)
        surveyor = Surveyor(self._survey, look.images)

        def survey_early(row: int, answer: Answer) -> None:
            if len(answer.states):
                surveyor.want(look.pictures[row])

        decoded = self.decoder.decode(cancelled=cancelled, script=script, on_answer=survey_early, **look.questions)
        texts = [self.model.tokenizer.decode([self.model.tokenizer.think, *a.ids]) for a in decoded]
        forced = self._forced(batch, look, texts, decoded)
        wanted = _emitted(texts, decoded) + forced
        masks, ious = self._masks(look, surveyor, wanted)
        shown = {row for row, exemplar in enumerate(batch.exemplars) if exemplar is not None}
        return self._answers(texts, decoded, wanted, masks, ious, {w.row for w in forced}, shown)

    def _check(self, batch: TileBatch) -> None:
        due = (self.card.tile_size_px, self.card.tile_size_px, 3)
        if batch.images.shape[1:] != due:
            raise ValueError(f"images are {batch.images.shape[1:]}: accepted are tiles of {due}")
        for exemplar in filter(None, batch.exemplars):
            if exemplar.image.shape != due:
                raise ValueError(f"exemplar is {exemplar.image.shape}: accepted is a picture of {due}")

    def _look(self, batch: TileBatch) -> _Look:
        """Run the pathology encoder over every different picture, and show each row its exemplar."""
        pictures, firsts = _different(batch.images)
        images = torch.from_numpy(np.ascontiguousarray(batch.images[firsts])).to(self.model.device)
        with self.stopwatch.stage("see"):
            seen = self._see(images)
            tokens, shown, match = seen.tokens[pictures], None, None
            if any(e is not None for e in batch.exemplars):
                tokens, shown, match = self._remind(batch, seen, pictures)
        questions = {
            "queries": batch.queries, "mpps": _scales(batch), "tokens": tokens.to(self.model.dtype),
            "pictures": pictures, "tile_first": batch.tile_first, "shown": shown,
        }  # fmt: skip
        return _Look(pictures, images, seen.classes.float(), questions, match)

    def _see(self, images: Tensor) -> Seen:
        with self._encoding():
            parts = [self.model.see(chunk) for chunk in images.split(self.see_chunk)]
        return Seen.join(parts)

    def _remind(self, batch: TileBatch, seen: Seen, pictures: list[int]) -> tuple[Tensor, Shown, Tensor]:
        """Image tokens (B, n, H), exemplars and matches (B, 4, h, w); rows without an exemplar stay as they are."""
        keys = list(dict.fromkeys(e.key for e in batch.exemplars if e is not None))
        by_key = {e.key: e for e in batch.exemplars if e is not None}
        of = [None if e is None else keys.index(e.key) for e in batch.exemplars]
        device = self.model.device
        drawn, plain = (
            torch.from_numpy(np.stack(pictures)).to(device)
            for pictures in ([by_key[k].drawn() for k in keys], [by_key[k].image for k in keys])
        )
        with self._encoding():
            shown = self.model.see(drawn, plain)
        outlines = torch.from_numpy(np.stack([by_key[k].mask for k in keys])).to(device).float()
        tokens, grid = seen.tokens[pictures], FINER * self.model.config.patch_grid
        match = tokens.new_zeros(len(of), CHANNELS, grid, grid)
        memory = tokens.new_zeros(len(keys), tokens.shape[-1])
        rows = [row for row, e in enumerate(of) if e is not None]
        for part in (rows[i : i + self.see_chunk] for i in range(0, len(rows), self.see_chunk)):
            which = [of[row] for row in part]
            asked = [pictures[row] for row in part]
            with self._encoding():
                reminded = self.model.remind(seen.rows(asked), shown.rows(which), outlines[which])
            tokens[part], match[part] = reminded.tokens.to(tokens.dtype), reminded.match.to(match.dtype)
            memory[which] = reminded.memory.to(memory.dtype)
        dtype = self.model.dtype
        return tokens, Shown(of, shown.tokens.to(dtype), memory.to(dtype)), match.float()

    def _encoding(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()

    def _survey(self, images: Tensor) -> list[Tensor]:
        """MedSAM's features; fp32 on a CPU, where masks are decoded in fp32."""
        with self.stopwatch.stage("survey"), self._encoding():
            features = self.model.survey(images)
        return [f.to(self.model.dtype) for f in features]

    def _forced(self, batch: TileBatch, look: _Look, texts: list[str], decoded: list[Answer]) -> list[_Wanted]:
        """Masks for silent tiles that were asked again."""
        silent = [int(row) for row in np.flatnonzero(batch.forced) if not len(decoded[row].states)]
        endings = {row: ending for row in silent if (ending := as_if_present(texts[row])) is not None}
        if not endings:
            return []
        questions = Questions.build(self.model, **_part(look.questions, list(endings)), answers=[
            ending for ending, _ in endings.values()
        ])  # fmt: skip
        states = forced_states(self.model, questions)
        return [
            _Wanted(row, state, phrase, decoded[row].p_seg)
            for (row, (_, phrase)), state in zip(endings.items(), states, strict=True)
        ]

    def _masks(self, look: _Look, surveyor: Surveyor, wanted: list[_Wanted]) -> tuple[np.ndarray, np.ndarray]:
        """Decode all masks of the batch together; MedSAM's encoder sees only tiles that have one.

        The mask decoder learned only from targets that are there, so on a tile that points by mistake it outlines what
        it can. The dense class head learned what is *not* the target too: its logits join the mask's.

        Returns:
            (M, H, W) float16 probabilities and (M,) float32 predicted IoU.
        """
        size = self.card.tile_size_px
        if not wanted:
            return np.zeros((0, size, size), np.float16), np.zeros(0, np.float32)
        for w in wanted:
            surveyor.want(look.pictures[w.row])
        features, index = surveyor.features([look.pictures[w.row] for w in wanted])
        states = torch.stack([w.state for w in wanted])
        masks, ious = [], []
        with self.stopwatch.stage("masks"):
            for start in range(0, len(wanted), MASK_CHUNK):
                part = slice(start, start + MASK_CHUNK)
                match = None if look.match is None else look.match[[w.row for w in wanted[part]]]
                logits, iou = self.model.decode_masks(features, index[part], states[part], match)
                logits = logits[:, None].float()
                if self.model.config.dense_classes:
                    logits = logits + EVIDENCE * self._evidence(look, wanted[part], logits.shape[-1])
                logits = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
                masks.append(logits[:, 0].sigmoid().to(torch.float16).cpu().numpy())
                ious.append(iou.float().clamp(0, 1).cpu().numpy())
        return np.concatenate(masks), np.concatenate(ious)

    def _evidence(self, look: _Look, wanted: list[_Wanted], edge: int) -> Tensor:
        """Class logits of each mask's target, (M, 1, edge, edge); zero where the phrase names no taught concept."""
        grid, columns, classes = self.model.config.patch_grid, self.model.config.dense_classes, look.classes
        maps = [
            classes[look.pictures[w.row], :, columns.index(key)].view(1, grid, grid)
            if (key := EVIDENCE_FOR.get(w.phrase)) in columns
            else classes.new_zeros(1, grid, grid)
            for w in wanted
        ]
        return F.interpolate(torch.stack(maps).clamp(-6, 6), (edge, edge), mode="bilinear", align_corners=False)

    def _answers(
        self, texts: list[str], decoded: list[Answer], wanted: list[_Wanted], masks: np.ndarray, ious: np.ndarray,
        forced: set[int], shown: set[int],
    ) -> list[TileAnswer]:  # fmt: skip
        answers, config = [], self.model.config
        for row, text in enumerate(texts):
            calibration = config.calibration_by_exemplar if row in shown else config.calibration
            own = [m for m, w in enumerate(wanted) if w.row == row]
            raw = np.array([ious[m] * wanted[m].token_probability for m in own], np.float32)
            answers.append(
                TileAnswer(
                    text=text,
                    masks=masks[own],
                    phrases=tuple(wanted[m].phrase for m in own),
                    confidence=calibrated(raw, calibration),
                    raw_confidence=raw,
                    p_seg=decoded[row].p_seg,
                    forced=row in forced,
                )
            )
        return answers


def calibrated(raw: np.ndarray, calibration: tuple[float, float] | None) -> np.ndarray:
    """Raw confidences in [0, 1] → calibrated ones: σ(slope · logit + offset), or themselves without a calibration."""
    if calibration is None:
        return raw
    slope, offset = calibration
    clipped = np.clip(raw, 1e-6, 1 - 1e-6)
    return (1 / (1 + np.exp(-slope * np.log(clipped / (1 - clipped)) - offset))).astype(np.float32)


def _emitted(texts: list[str], decoded: list[Answer]) -> list[_Wanted]:
    """The masks that the answers point at."""
    wanted = []
    for row, (text, answer) in enumerate(zip(texts, decoded, strict=True)):
        phrases = phrases_of(text)
        for k, state in enumerate(answer.states):
            wanted.append(_Wanted(row, state, phrases[k], float(np.exp(answer.log_probs[k]))))
    return wanted


def _different(images: np.ndarray) -> tuple[list[int], list[int]]:
    """Which picture each of B rows shows, and where each different picture stands first.

    A few pixels tell most pictures apart; only those that agree in them are compared as a whole.
    """
    firsts: list[int] = []
    alike: dict[bytes, list[int]] = {}
    pictures = []
    for row, image in enumerate(images):
        places = alike.setdefault(image[::16, ::16].tobytes(), [])
        place = next((p for p in places if np.array_equal(images[firsts[p]], image)), None)
        if place is None:
            place = len(firsts)
            firsts.append(row)
            places.append(place)
        pictures.append(place)
    return pictures, firsts


def _part(questions: dict, rows: list[int]) -> dict:
    """Some rows of what `Questions.build` takes."""
    shown = questions["shown"]
    part = {
        name: None if questions[name] is None else [questions[name][row] for row in rows]
        for name in ("queries", "mpps", "pictures", "tile_first")
    }
    part["tokens"] = questions["tokens"][rows]
    part["shown"] = shown and Shown([shown.of[row] for row in rows], shown.reference, shown.memory)
    return part


def phrases_of(text: str) -> list[str]:
    """The target phrase before each `<SEG>`: what stands between it and the last colon, semicolon or full stop."""
    parts = text.split(SEG)[:-1]
    return [part.replace(";", ":").replace(".", ":").split(":")[-1].strip(" ,") for part in parts]


def load_segmenter(name: str = "tiny", device: str | None = None) -> PathChatPredictor:
    """The shipped model by name, or any checkpoint folder by its path.

    Args:
        name: which.
        device: `cpu`, `cuda` or `cuda:1`; None or `auto` takes `SLIDEREASON_DEVICE`, else a GPU where there is one.
            On a GPU the weights are bfloat16, on a CPU float32.

    Raises:
        CheckpointError: no such model; the message says which are installed.
        ValueError: no such device.
    """
    folder = CHECKPOINTS / name if (CHECKPOINTS / name).is_dir() else Path(name)
    if not (folder / "config.json").is_file():
        installed = sorted(p.parent.name for p in CHECKPOINTS.glob("*/config.json"))
        raise CheckpointError(f"model {name!r}: no such checkpoint; installed are {installed}, or give a folder")
    where = choose_device(device)
    model = load_checkpoint(folder, where, dtype_on(where))
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
        exemplars=not any(name.startswith("matcher.") for name in told.get("fresh", ())),
        stain=read_stain_file(folder),
    )
    return PathChatPredictor(model, card)


def choose_device(device: str | None = None) -> torch.device:
    """The device that is asked for, or the best there is.

    Raises:
        ValueError: no such device; the message says what is accepted.
    """
    wanted = device or os.environ.get("SLIDEREASON_DEVICE") or "auto"
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if wanted not in (*here, *(["cuda"] if len(here) > 1 else [])):
        raise ValueError(f"device {wanted!r}: accepted here are auto, {', '.join(here)}")
    return torch.device(wanted)


def _scales(batch: TileBatch) -> list[float | None]:
    """µm/px of each tile, None where unknown."""
    return [float(mpp) if np.isfinite(mpp) else None for mpp in batch.mpp]
