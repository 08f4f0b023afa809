"""LoRA adapters in PEFT's format, merged into the weights they belong to: W + scale · B·A.

Source: Hu et al. 2022, LoRA; huggingface.co/docs/peft, Checkpoint format.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.importers.imported import Imported
from model.importers.qwen import our_name
from model.stored import CheckpointError, Stored, Tensors, name_some, open_folder, read_json

LORA = re.compile(r"(?P<module>.+)\.lora_(?P<kind>(embedding_)?[AB])(\.(?P<adapter>(?!weight$)[^.]+))?(\.weight)?$")
REFUSED = {
    "use_dora": False, "use_bdlora": False, "use_qalora": False, "lora_bias": False, "fan_in_fan_out": False,
    "bias": "none", "layer_replication": None, "target_parameters": None, "trainable_token_indices": None,
    "megatron_config": None, "alora_invocation_tokens": None,
}  # fmt: skip
"""Options of PEFT that change what is added, and the values at which they do not."""
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""How a LoRA may have been initialised; others (PiSSA, OLoRA, LoftQ, CorDA …) changed the base weights as well."""


@dataclass(frozen=True)
class Lora:
    """One low-rank addition: A (r, in) and B (out, r); for an embedding A (r, rows) and B (dim, r)."""

    a: Stored
    b: Stored
    scale: float
    embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it is added to."""
        out, into = self.b.shape[0], self.a.shape[1]
        return (into, out) if self.embedding else (out, into)

    def merged(self, weight: Stored) -> Stored:
        """The weight with the addition, as the weight's own type; rounded once."""

        def read() -> torch.Tensor:
            delta = (self.b.read() @ self.a.read()) * self.scale
            return (weight.read() + (delta.T if self.embedding else delta)).to(weight.dtype)

        return Stored(weight.shape, weight.dtype, read)


def read_lora(folder: Path, base: Tensors) -> Imported:
    """Read an adapter and merge it.

    Args:
        folder: `adapter_config.json` with `adapter_model.safetensors` or `.bin`.
        base: the weights it belongs to, by our names. The adapter may name them as Qwen2.5-VL does, in either layout,
            or as we do.

    Returns:
        Only the weights that it changes: merged, or, of `modules_to_save`, replaced.

    Raises:
        CheckpointError: not LoRA, or LoRA of a kind that is not a plain addition; keys without their other half,
            without a weight in `base`, or of another shape than it. The message names them.
    """
    where = f"adapter {folder.name}"
    about = read_json(folder / "adapter_config.json")
    check_adapter_config(where, about)
    found, files = open_folder(folder, "adapter_model")
    halves, whole, ignored = sort_keys(found)
    loras = {module: _pair(where, module, pair, about) for module, pair in halves.items()}
    targets = {module: our_weight(f"{module}.weight", base) for module in loras}
    replaced = {key: our_weight(key.removeprefix("base_model.model."), base) for key in whole}
    if strangers := [key for key, name in (targets | replaced).items() if name not in base]:
        raise CheckpointError(f"{where}: weights of {name_some(strangers)} were not imported, or this model has none")
    pairs = [(f"{module} {list(loras[module].shape)}", loras[module].shape, base[targets[module]]) for module in loras]
    pairs += [(f"{key} {list(found[key].shape)}", found[key].shape, base[replaced[key]]) for key in whole]
    if wrong := [f"{key} instead of {list(weight.shape)}" for key, shape, weight in pairs if shape != weight.shape]:
        raise CheckpointError(f"{where}: of another shape {name_some(wrong)}")
    tensors = {replaced[key]: found[key] for key in whole}
    for module, lora in loras.items():
        tensors[targets[module]] = lora.merged(tensors.get(targets[module], base[targets[module]]))
    return Imported("peft-lora", files, tensors, tuple(sorted(found.keys() - ignored)), tuple(sorted(ignored)))


def check_adapter_config(where: str, about: Mapping[str, Any]) -> None:
    """Refuse what is not a plain low-rank addition.

    Raises:
        CheckpointError: the message names the field and what is accepted.
    """
    if about.get("peft_type") != "LORA":
        raise CheckpointError(f"{where}: peft_type={about.get('peft_type')!r}; accepted is 'LORA'")
    for field, plain in REFUSED.items():
        if about.get(field, plain) not in (plain, None):
            raise CheckpointError(f"{where}: {field}={about[field]!r}; accepted is {plain!r}")
    if (start := about.get("init_lora_weights", True)) not in PLAIN_STARTS:
        raise CheckpointError(
            f"{where}: init_lora_weights={start!r} changed the base weights; accepted are {list(PLAIN_STARTS)}, "
            "or the adapter converted to plain LoRA by PEFT"
        )
    for field in ("rank_pattern", "alpha_pattern"):
        if not isinstance(about.get(field) or {}, dict):
            raise CheckpointError(f"{where}: {field}={about[field]!r}; an object of pattern and number is accepted")
    if not isinstance(about.get("r"), int) or not isinstance(about.get("lora_alpha"), int | float):
        raise CheckpointError(f"{where}: adapter_config.json must tell r and lora_alpha")


def sort_keys(found: Tensors) -> tuple[dict[str, dict[str, Stored]], list[str], list[str]]:
    """Keys of an adapter: module → its halves by kind; keys that replace a weight; copies of unchanged weights."""
    halves: dict[str, dict[str, Stored]] = {}
    whole, ignored = [], []
    for key, tensor in found.items():
        if match := LORA.match(key):
            halves.setdefault(match["module"].removeprefix("base_model.model."), {})[match["kind"]] = tensor
        else:
            (ignored if ".base_layer." in key or ".original_module." in key else whole).append(key)
    return halves, whole, ignored


def _pair(where: str, module: str, halves: Mapping[str, Stored], about: Mapping[str, Any]) -> Lora:
    embedding = any(kind.startswith("embedding") for kind in halves)
    kinds = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(halves) != set(kinds):
        missing = sorted(set(kinds) - set(halves))
        raise CheckpointError(f"{where}: {module}: missing {['lora_' + kind for kind in missing]}")
    a, b = (halves[kind] for kind in kinds)
    rank = _by_pattern(about.get("rank_pattern"), module, about["r"])
    alpha = _by_pattern(about.get("alpha_pattern"), module, about["lora_alpha"])
    if a.shape[0] != rank or b.shape[1] != rank:
        raise CheckpointError(f"{where}: {module}: rank {a.shape[0]} and {b.shape[1]} instead of {rank}")
    return Lora(a, b, alpha / (math.sqrt(rank) if about.get("use_rslora") else rank), embedding)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that the end of a module's name matches, as PEFT looks it up."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def our_weight(key: str, base: Tensors) -> str:
    """Our name of a weight that an adapter names; unchanged where there is none."""
    key = key.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
    return key if key in base else our_name(key)
