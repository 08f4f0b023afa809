"""MedSAM's encoder, for the tiles that point at something and no others; on a GPU beside the decoding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK = 8
"""Tiles that are encoded together while decoding goes on."""


class Surveyor:
    """Encodes the pictures that are wanted, each once.

    On a GPU a chunk starts on a stream of its own as soon as it is full, while the language model goes on; elsewhere
    everything is encoded when it is asked for.

    Args:
        survey: (B, H, W, 3) uint8 → features, finest last.
        images: (U, H, W, 3) uint8 on the model's device.
    """

    def __init__(self, survey: Callable[[Tensor], list[Tensor]], images: Tensor):
        self._survey, self._images = survey, images
        self._stream = torch.cuda.Stream() if images.device.type == "cuda" else None
        self._place: dict[int, int] = {}
        self._waiting: list[int] = []
        self._parts: list[list[Tensor]] = []

    def want(self, picture: int) -> None:
        """Ask for a picture's features."""
        if picture in self._place:
            return
        self._place[picture] = len(self._place)
        self._waiting.append(picture)
        if self._stream is not None and len(self._waiting) >= CHUNK:
            self._encode()

    def features(self, pictures: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """What was encoded, and for each of M pictures its place in it, (M,) int64.

        Raises:
            KeyError: a picture was never wanted.
        """
        index = torch.tensor([self._place[picture] for picture in pictures], device=self._images.device)
        while self._waiting:
            self._encode()
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        if len(self._parts) > 1:
            self._parts = [[torch.cat(levels) for levels in zip(*self._parts, strict=True)]]
        return self._parts[0], index

    def _encode(self) -> None:
        chunk, self._waiting = self._waiting[: 2 * CHUNK], self._waiting[2 * CHUNK :]
        if self._stream is None:
            self._parts.append(self._survey(self._images[chunk]))
            return
        main = torch.cuda.current_stream()
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            part = self._survey(self._images[chunk])
        for level in part:
            level.record_stream(main)
        self._parts.append(part)
