"""What an importer gives: tensors by our names, unread, and an account of what became of every key of the source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.stored import CheckpointError, Stored, Tensors, compare

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Imported:
    """One source, read.

    Attributes:
        form: its format, e.g. `sam`.
        files: what was read.
        tensors: our name → tensor.
        used: keys of the source that went into them.
        ignored: its keys that this model has no place for.
        fresh: our names of the same parts that the source does not have.
        told: fields of `PathChatConfig` that the source knows better.
    """

    form: str
    files: tuple[Path, ...]
    tensors: Tensors
    used: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """Where one of our tensors is found: a key of the source, or one of `of` equal parts of it along its first axis."""

    key: str
    part: int = 0
    of: int = 1

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the source's tensor, given ours."""
        return (shape[0] * self.of, *shape[1:]) if self.of > 1 else shape

    def cut(self, tensor: Stored, shape: tuple[int, ...]) -> Stored:
        """Our tensor out of the source's."""
        if self.of == 1:
            return tensor
        return Stored(shape, tensor.dtype, lambda: tensor.read().chunk(self.of)[self.part].clone())


def assemble(where: str, found: Tensors, pieces: Mapping[str, Piece], own: Shapes) -> dict[str, Stored]:
    """Our tensors from a source's.

    Args:
        where: names the source in messages.
        found: the source's tensors, all of which must be wanted.
        pieces: our name → where it is.
        own: shape of each of our names.

    Raises:
        CheckpointError: keys of the source are missing, unexpected or of another shape; the message names them.
    """
    expected = {piece.key: piece.whole(own[name]) for name, piece in pieces.items()}
    compare(where, {key: tensor.shape for key, tensor in found.items()}, expected)
    return {name: piece.cut(found[piece.key], own[name]) for name, piece in pieces.items()}


def check_numbers(where: str, part: str, found: Mapping[str, Any], expected: Any) -> None:
    """Hold what a source says of its shape against a part of the configuration.

    Args:
        where: names the source.
        part: names the part: `vision`, `language` or `sam`.
        found: field → its value in the source; fields that the source does not tell are left out.
        expected: the `VisionConfig`, `LanguageConfig` or `SamConfig`.

    Raises:
        CheckpointError: they differ; the message names each field, what was found and what was expected.
    """
    wrong = [
        f"{part}.{name} is {value} in the file, {getattr(expected, name)} in the configuration"
        for name, value in found.items()
        if getattr(expected, name) != value
    ]
    if wrong:
        raise CheckpointError(f"{where}: {'; '.join(wrong)}")


def without_prefix(tensors: Tensors, prefixes: tuple[str, ...]) -> dict[str, Stored]:
    """The tensors with what a training wrapper put before every key taken off, as often as it stands there."""
    tensors = dict(tensors)
    while tensors and (shared := [p for p in prefixes if all(key.startswith(p) for key in tensors)]):
        tensors = {key.removeprefix(shared[0]): tensor for key, tensor in tensors.items()}
    return tensors


def depth_of(tensors: Tensors, before: str) -> int:
    """How many blocks are numbered after `before`."""
    numbers = [key.removeprefix(before).partition(".")[0] for key in tensors if key.startswith(before)]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)
