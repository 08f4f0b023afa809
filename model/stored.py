"""Tensors in files, read one at a time: safetensors, torch's pickles with nothing but tensors in them, and shards.

A 7B model is 15 GB, so nothing here holds a file: a `Stored` tensor knows its shape and type and is read when asked.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

NAMED = 12
"""How many keys a message names before it only counts them."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Types by their names in safetensors."""


class CheckpointError(ValueError):
    """A file of weights is missing or unreadable, or its keys do not fit the model; the message names them."""


@dataclass(frozen=True)
class Stored:
    """A tensor that is not read yet.

    Attributes:
        shape, dtype: of what `read` gives.
        read: gives it, on the host, in memory of its own.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()


Tensors = Mapping[str, Stored]


def open_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of one file.

    Args:
        path: `.safetensors`, or what `torch.save` wrote of a dict, maybe inside dicts (`{"model": …, "epoch": …}`);
            the first of `state_dict`, `model`, `teacher`, `student` that is a dict is taken.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def _open_safetensors(path: Path) -> dict[str, Stored]:
    def reader(key: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            # Opened anew for each tensor: as long as a file is mapped, what was read of it counts as held.
            with safe_open(path, "pt") as file:
                return file.get_tensor(key).clone()

        return read

    try:
        with safe_open(path, "pt") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            told = {key: (tuple(p.get_shape()), _dtype(path, key, p.get_dtype())) for key, p in parts.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    return {key: Stored(shape, dtype, reader(key)) for key, (shape, dtype) in told.items()}


def _dtype(path: Path, key: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise CheckpointError(f"{path}: {key} is {name}; accepted are {', '.join(DTYPES)}")
    return DTYPES[name]


def _open_pickle(path: Path) -> dict[str, Stored]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, since it is damaged or holds code or objects beside tensors: {_first(error)}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as a file of torch: {_first(error)}") from error
    tensors = {k: v for k, v in _unwrap(path, loaded).items() if isinstance(v, Tensor)}
    return {k: Stored(tuple(v.shape), v.dtype, lambda v=v: v.detach().clone()) for k, v in tensors.items()}


def _first(error: Exception) -> str:
    """The first line of a message, up to its first full stop."""
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__


def _unwrap(path: Path, loaded: Any) -> dict[str, Any]:
    """The state dict inside what a training script saved."""
    while isinstance(loaded, dict):
        inner = [loaded[k] for k in ("state_dict", "model", "teacher", "student") if isinstance(loaded.get(k), dict)]
        if not inner:
            break
        loaded = inner[0]
    if isinstance(loaded, dict):
        loaded = {key: value for key, value in loaded.items() if isinstance(key, str)}
    if not isinstance(loaded, dict) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path}: no state dict inside; accepted is a dict of tensors, maybe under 'model'")
    return loaded


def open_folder(folder: Path, stem: str = "model") -> tuple[dict[str, Stored], tuple[Path, ...]]:
    """The tensors of a folder in Hugging Face's layout.

    Args:
        folder: holds `{stem}.safetensors`, or shards with `{stem}.safetensors.index.json`; or the same as `.bin`.
        stem: `model` (which as `.bin` is called `pytorch_model`) or `adapter_model`.

    Returns:
        The tensors, and the files that they are in.

    Raises:
        CheckpointError: no weights, a shard is missing, or shards and index disagree; the message names file and keys.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder")
    binary = {"model": "pytorch_model"}.get(stem, stem)
    names = [f"{stem}.safetensors", f"{binary}.bin"]
    for name in names:
        if (folder / f"{name}.index.json").is_file():
            return _open_shards(folder, f"{name}.index.json")
        if (folder / name).is_file():
            return open_tensors(folder / name), (folder / name,)
    raise CheckpointError(f"{folder}: no weights; looked for {' and '.join(names)}, whole or with .index.json")


def _open_shards(folder: Path, index: str) -> tuple[dict[str, Stored], tuple[Path, ...]]:
    listed = read_json(folder / index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(f"{folder / index}: weight_map is missing; accepted is an object of keys and file names")
    if outside := sorted(name for name in set(listed.values()) if Path(name).name != name):
        raise CheckpointError(f"{folder / index}: weight_map leads outside its folder: {name_some(outside)}")
    files = tuple(folder / name for name in sorted(set(listed.values())))
    if absent := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{folder}: missing shards {name_some(absent)}, which {index} names")
    tensors: dict[str, Stored] = {}
    for file in files:
        shard = open_tensors(file)
        due = {key for key, name in listed.items() if name == file.name}
        if due != shard.keys():
            raise CheckpointError(
                f"{file}: does not fit {index}: missing {name_some(due - shard.keys())}, "
                f"unexpected {name_some(shard.keys() - due)}"
            )
        tensors |= shard
    return tensors, files


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: no such file, or not a JSON object; the message names it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: a JSON object is accepted, found a {type(data).__name__}")
    return data


def name_some(keys: Any) -> str:
    """Keys in order, the first few by name: `['a', 'b'] and 7 more`."""
    keys = sorted(keys)
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return f"{keys[:NAMED]}{more}"


def compare(where: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Hold the keys and shapes of a source against what is expected of it.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; the message names them, and `where`.
    """
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    shapes = [
        f"{key} {list(found[key])} instead of {list(expected[key])}"
        for key in found.keys() & expected.keys()
        if tuple(found[key]) != tuple(expected[key])
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{where}: missing {name_some(missing)}, unexpected {name_some(unexpected)}, "
            f"of another shape {name_some(shapes)}"
        )
