"""A step of decoding as a CUDA graph: hundreds of small kernels launched as one.

On a CPU a step simply runs.
"""

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Graphs:
    """Captures a piece of work once for each key, and replays it afterwards.

    The work must read and write the same memory each time, and must not wait for the device. Its first run under a key
    is plain, which warms up what it calls; the second captures; later ones replay.

    Args:
        device: graphs are made on CUDA only.
    """

    def __init__(self, device: torch.device):
        self._on = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._on else None
        self._warm: set[Hashable] = set()
        self._captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def run(self, key: Hashable, work: Callable[[], Tensor]) -> Tensor:
        """Do the work; its result is overwritten by the next run under the same key."""
        if not self._on:
            return work()
        if key not in self._warm:
            self._warm.add(key)
            return work()
        if key not in self._captured:
            self._capture(key, work)
        if not self._on:
            return work()
        graph, result = self._captured[key]
        graph.replay()
        return result

    def _capture(self, key: Hashable, work: Callable[[], Tensor]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                result = work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("steps run without CUDA graphs: %s", error)
            self._on = False
            return
        self._captured[key] = graph, result
