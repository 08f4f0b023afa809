"""Which weights of a model learn: parts left as they are, LoRA in the attention, single rows of the vocabulary.

LoRA sits in the model itself while it trains and is folded into the weights before they are saved, so a checkpoint of a
run reads like any other; switched off, the model is what it was before the stage: the reference policy of SO-GRPO.

What stays may be held in bfloat16, while all that learns is fp32: of `paper-7b` that is 16 GB instead of 32.

Source: Hu et al. 2022, LoRA; Liu et al. 2026, PathChat-SegR1, §3.3; Micikevicius et al. 2018, Mixed precision training.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.pathchat import PathChatSegR1

LARGE = ("language_model.", "pathology_encoder.", "sam_encoder.")
"""The parts that `frozen_dtype` is about; the others are small, and some tell the model what it computes in."""
FROZEN_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoraSettings:
    """LoRA of the paper.

    Attributes:
        rank, alpha, dropout: r, α and dropout of the adapters.
        parts: beginnings of the names of modules that get them.
        projections: last names of the linear layers in those parts.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.1
    parts: tuple[str, ...] = ("language_model.", "pathology_encoder.")
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Trainable:
    """What of a model learns.

    Attributes:
        frozen: beginnings of names that stay as they are.
        trained: names with wildcards; given any, all else stays as it is (but for LoRA).
        lora: adapters, or None.
        seg_row: whether the word embedding, and the output layer where it is its own, learn in the row of `<SEG>`.
        frozen_dtype: what the weights of the language model and of both encoders are held in where they do not learn:
            `fp32` or `bf16`.

    Raises:
        ValueError: no such type.
    """

    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    lora: LoraSettings | None = None
    seg_row: bool = False
    frozen_dtype: str = "fp32"

    def __post_init__(self):
        if self.frozen_dtype not in FROZEN_DTYPES:
            raise ValueError(f"frozen_dtype={self.frozen_dtype!r}: accepted are {list(FROZEN_DTYPES)}")

    @classmethod
    def from_json(cls, data: dict) -> "Trainable":
        """Take its fields out of a stage's settings."""
        lora = data.pop("lora", None)
        if lora is not None:
            lora = LoraSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in lora.items()})
        return cls(
            tuple(data.pop("frozen", ())),
            tuple(data.pop("trained", ())),
            lora,
            data.pop("seg_row", False),
            data.pop("frozen_dtype", "fp32"),
        )

    def prepare(self, model: PathChatSegR1) -> None:
        """Freeze, unfreeze, adapt, and cast what stays; one on `meta` will do, to learn what becomes of its weights.

        Raises:
            KeyError: the model has no such part; the message names it.
        """
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.trained:
            if not any(fnmatch(name, pattern) for name in names):
                raise KeyError(f"trained: the model has no weight {pattern!r}")
        for begin in self.frozen:
            if not any(name.startswith(begin) for name in names):
                raise KeyError(f"frozen: the model has no part {begin!r}")
        for name, weight in model.named_parameters():
            wanted = not self.trained or any(fnmatch(name, pattern) for pattern in self.trained)
            weight.requires_grad_(wanted and not name.startswith(self.frozen or ("\0",)))
        if self.lora is not None:
            add_lora(model, self.lora, frozen_base=True)
        if self.seg_row:
            train_row(model, model.tokenizer.seg)
        for name, weight in model.named_parameters():
            if name.startswith(LARGE):
                weight.data = weight.data.to(FROZEN_DTYPES["fp32" if weight.requires_grad else self.frozen_dtype])


def add_lora(model: PathChatSegR1, settings: LoraSettings, frozen_base: bool = True) -> list[str]:
    """Put adapters into the attention of some parts; returns the names of the layers that got one.

    Raises:
        KeyError: no layer fits.
    """
    ends = "|".join(re.escape(name) for name in settings.projections)
    starts = "|".join(re.escape(name) for name in settings.parts)
    pattern = re.compile(rf"(?:{starts}).*?\.(?:{ends})")
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and pattern.fullmatch(name)]
    if not layers:
        raise KeyError(f"lora: no layer {list(settings.projections)} in {list(settings.parts)}")
    learns = {name: weight.requires_grad for name, weight in model.named_parameters()}
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=layers, bias="none"
    )
    inject_adapter_in_model(config, model)
    chosen = tuple(f"{name}." for name in layers)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.requires_grad_(True)
        else:  # peft froze everything
            plain = name.replace(".base_layer.", ".")
            weight.requires_grad_(learns[plain] and not (frozen_base and plain.startswith(chosen)))
    return layers


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters: the reference policy."""
    layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Fold adapters and rows into the weights and take them out; names are again those of a checkpoint.

    What LoRA adapted is fp32 afterwards: rounded to bfloat16, a small change of a weight would be lost.
    """
    for name, part in list(model.named_modules()):
        if isinstance(part, LoraLayer):
            base = part.get_base_layer()
            base.weight.data = base.weight.data.float()
            part.merge()
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], base)
        elif isinstance(part, RowAdapter):
            part.fold()
    for weight in model.parameters():
        weight.requires_grad_(True)
    return model


class RowAdapter(nn.Module):
    """One row of a frozen table that learns beside it: nothing is kept for the other 152,063.

    Where the table is fp32 too, it is a view of it, so that whoever reads the table itself reads what was learnt.

    Attributes:
        row: (1, H) float32.
        place: which row of the table it is.
    """

    def __init__(self, table: nn.Embedding | nn.Linear, place: int):
        super().__init__()
        self.place = place
        self.row = nn.Parameter(table.weight.detach()[place : place + 1].float())
        self.row.rows_only = True  # no weight decay, as the other rows have none
        self._tables: list[tuple[nn.Module, RemovableHandle]] = []
        table.row_adapter = self
        self.stand_in(table)

    def stand_in(self, table: nn.Embedding | nn.Linear) -> None:
        """From now on the table says at this row what was learnt."""
        hook = self._embedded if isinstance(table, nn.Embedding) else self._scored
        self._tables.append((table, table.register_forward_hook(hook)))

    def _embedded(self, _: nn.Module, given: tuple, out: Tensor) -> Tensor:
        """(…) ids → (…, H)."""
        return torch.where((given[0] == self.place)[..., None], self.row[0].to(out.dtype), out)

    def _scored(self, _: nn.Module, given: tuple, out: Tensor) -> Tensor:
        """(…, H) states → (…, V) logits; in place, as they are the largest tensor of a step."""
        out[..., self.place] = nn.functional.linear(given[0], self.row.to(given[0].dtype))[..., 0].to(out.dtype)
        return out

    @torch.no_grad()
    def fold(self) -> None:
        """Write the row into the tables, and leave them."""
        for table, hook in self._tables:
            hook.remove()
            table.weight[self.place] = self.row[0]
        del self._tables[0][0].row_adapter


def train_row(model: PathChatSegR1, place: int) -> None:
    """Let the word embedding, and the output layer where it is its own, learn in this row alone."""
    embedding, output = model.language_model.text_model.embed_tokens, model.language_model.qwen.lm_head
    embedding.weight.requires_grad_(False)
    output.weight.requires_grad_(False)
    adapter = RowAdapter(embedding, place)
    if model.language_model.tied:
        adapter.stand_in(output)
    else:
        RowAdapter(output, place)
