"""The config file of a training run: strict JSON, one section a stage.

    {"model": "tiny", "seed": 0, "data": {"synthetic_scenes": 2400}, "sft": {"batch_size": 16, "steps": 2400, …}}

A stage's section holds the loop's fields (`LoopConfig`), what learns (`Trainable`) and the stage's own options.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from model.builders import VARIANTS
from model.config import PathChatConfig
from model.training.loop import LoopConfig
from model.training.trainable import LoraSettings, Trainable

STAGES = ("lm", "ssl", "pretrain", "sft", "so-grpo")
_LOOP = {f.name for f in fields(LoopConfig)}
_TRAINABLE = {f.name for f in fields(Trainable)}
_OWN = {
    "lm": set(),
    "ssl": {"alpha", "mask_ratio", "mae_share", "match", "spread", "keep_classes"},
    "pretrain": {"objective", "mix"},
    "sft": {"weights"},
    "so-grpo": {"rl"},
}


class SettingsError(ValueError):
    """A config file that is not accepted; the message names the field and what is."""


@dataclass(frozen=True)
class DataSettings:
    """What the stages see.

    Attributes:
        synthetic_scenes: pictures made by `model.data.synthetic`.
        questions: per picture; exemplar_share: of steps that ask by an exemplar.
        weights: source → share of the draws; empty: the pool's own.
        stain: strength of the random stain, brightness and blur of every view; 1 is wider than any one laboratory.
        balance: parts of a source (EBHI-SEG's diagnoses) are drawn by their size to this power: 0 alike, 1 as they
            come.
    """

    synthetic_scenes: int = 2400
    questions: int = 2
    exemplar_share: float = 0.3
    weights: Mapping[str, float] = field(default_factory=dict)
    stain: float = 1.0
    balance: float = 0.5


@dataclass(frozen=True)
class StageSettings:
    """One stage of a run.

    Attributes:
        name: of `STAGES`.
        batch_size: pictures (texts for `lm`, prompts for `so-grpo`) of a micro-batch.
        loop, trainable: how long and fast, and what learns.
        own: the stage's other options.
    """

    name: str
    batch_size: int
    loop: LoopConfig
    trainable: Trainable
    own: Mapping[str, Any]


@dataclass(frozen=True)
class TrainSettings:
    """A config file.

    Attributes:
        model: what is built where no `--init` gives it.
        seed: of weights, data and everything else.
        data: what the stages see.
        stages: stage → its section, still to be read.
    """

    model: PathChatConfig
    seed: int
    data: DataSettings
    stages: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "TrainSettings":
        """Read and check a file.

        Raises:
            SettingsError: not there, not JSON, or a field that is not accepted.
        """
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise SettingsError(f"no config at {path}; a JSON file with one section a stage is accepted") from None
        except json.JSONDecodeError as error:
            raise SettingsError(f"{path}: not JSON ({error})") from None
        return cls.from_json(data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrainSettings":
        """Check a file's content; see `read`."""
        _only(data, {"model", "model_changes", "seed", "data", *STAGES}, "")
        variant = data.get("model", "tiny")
        if variant not in VARIANTS:
            raise SettingsError(f"model={variant!r}: accepted are {list(VARIANTS)}")
        model = _changed(VARIANTS[variant](), data.get("model_changes", {}))
        told = data.get("data", {})
        _only(told, {f.name for f in fields(DataSettings)}, "data.")
        stages = {name: data[name] for name in STAGES if name in data}
        settings = cls(model, data.get("seed", 0), DataSettings(**told), stages)
        for name in stages:
            settings.stage(name)
        return settings

    def stage(self, name: str, **changes: Any) -> StageSettings:
        """One section, checked; `changes` replace its fields.

        Raises:
            SettingsError: there is no such section, or a field in it is not accepted.
        """
        if name not in self.stages:
            raise SettingsError(f"the config has no section {name!r}; it has {list(self.stages)}")
        _only(self.stages[name], {"batch_size", *_LOOP, *_TRAINABLE, *_OWN[name]}, f"{name}.")
        section = {**self.stages[name], **{k: v for k, v in changes.items() if v is not None}}
        lora = section.get("lora")
        if lora is not None:
            _only(lora, {f.name for f in fields(LoraSettings)}, f"{name}.lora.")
        try:
            trainable = Trainable.from_json(section)
            own = {key: section.pop(key) for key in _OWN[name] if key in section}
            batch_size = section.pop("batch_size")
            loop = LoopConfig(**({"seed": self.seed} | section))
        except (TypeError, ValueError, KeyError) as error:
            raise SettingsError(f"{name}: {error}") from None
        if trainable.frozen_dtype != "fp32" and loop.precision == "fp32":
            raise SettingsError(
                f"{name}.frozen_dtype={trainable.frozen_dtype!r}: accepted with precision bf16 or fp16, not with fp32"
            )
        return StageSettings(name, batch_size, loop, trainable, own)


def _only(told: Mapping[str, Any], accepted: set[str], where: str) -> None:
    """Refuse a field that nobody reads."""
    if not isinstance(told, Mapping):
        raise SettingsError(f"{where.rstrip('.') or 'the config'}: an object is accepted, not {told!r}")
    odd = sorted(set(told) - accepted)
    if odd:
        raise SettingsError(f"{where}{odd[0]}: no such field; accepted are {sorted(accepted)}")


def _changed(config: PathChatConfig, changes: Mapping[str, Any]) -> PathChatConfig:
    """A variant with other numbers: `{"tile_px": 64, "vision": {"depth": 2}}`."""
    try:
        for name, value in changes.items():
            value = tuple(value) if isinstance(value, list) else value
            if isinstance(value, Mapping):
                parts = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
                value = replace(getattr(config, name), **parts)
            config = replace(config, **{name: value})
    except (TypeError, AttributeError, ValueError) as error:
        raise SettingsError(f"model_changes: {error}") from None
    return config
