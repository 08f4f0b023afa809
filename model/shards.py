"""Writing safetensors one tensor at a time, in shards where a model is large, with an index as Hugging Face has it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from model.stored import DTYPES, Stored, Tensors

SHARD_BYTES = 4 * 2**30
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_shards(folder: Path, tensors: Tensors, shard_bytes: int = SHARD_BYTES) -> str:
    """Write tensors as `model.safetensors`, or as shards with an index that also tells the SHA-256 of each.

    Only one tensor is held at a time.

    Args:
        folder: exists.
        tensors: name → what to write, in the order of the files.
        shard_bytes: a file is at most this large, unless a single tensor is larger.

    Returns:
        The revision: 12 hex digits of a SHA-256 over the weights.
    """
    groups = _share_out(tensors, shard_bytes)
    if len(groups) == 1:
        (folder / INDEX).unlink(missing_ok=True)
        return _write(folder / WEIGHTS, groups[0])[:12]
    (folder / WEIGHTS).unlink(missing_ok=True)
    files = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    hashes = {name: _write(folder / name, group) for name, group in zip(files, groups, strict=True)}
    index = {
        "metadata": {"total_size": sum(map(_bytes, tensors.values())), "sha256": hashes},
        "weight_map": {key: name for name, group in zip(files, groups, strict=True) for key in group},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return revision_of_shards(hashes)


def revision_of_shards(hashes: Mapping[str, str]) -> str:
    """The revision of a sharded model from the SHA-256 of each file, in the order of their names."""
    return hashlib.sha256("".join(hashes[name] for name in sorted(hashes)).encode()).hexdigest()[:12]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of any size, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(tensor: Stored) -> int:
    return tensor.size * tensor.dtype.itemsize


def _share_out(tensors: Tensors, shard_bytes: int) -> list[dict[str, Stored]]:
    groups: list[dict[str, Stored]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if groups[-1] and held + _bytes(tensor) > shard_bytes:
            groups.append({})
            held = 0
        groups[-1][name] = tensor
        held += _bytes(tensor)
    return groups


def _write(path: Path, tensors: Tensors) -> str:
    """One file: the header's length (8 bytes), the header as JSON, then the tensors; its SHA-256.

    Source: github.com/huggingface/safetensors, README, Format.
    """
    # The widest types first, so that every tensor starts at a multiple of its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {}
    at = 0
    for name in order:
        tensor, stop = tensors[name], at + _bytes(tensors[name])
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        _append(file.write, digest.update, [len(text).to_bytes(8, "little"), text])
        for name in order:
            flat = tensors[name].read().contiguous().reshape(-1).view(torch.uint8)
            _append(file.write, digest.update, [memoryview(flat.numpy())])
    partial.replace(path)
    return digest.hexdigest()


def _append(write: Callable, update: Callable, pieces: Iterable) -> None:
    for piece in pieces:
        write(piece)
        update(piece)


def cast(tensor: Stored, dtype: torch.dtype | None) -> Stored:
    """The same tensor as another type; None leaves it, as does anything that is no floating type."""
    if dtype in (None, tensor.dtype) or not tensor.dtype.is_floating_point:
        return tensor
    return Stored(tensor.shape, dtype, lambda: tensor.read().to(dtype))
