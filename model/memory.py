"""How much fits: slots by the free memory, and what running out of it looks like."""

import os
from pathlib import Path

import torch

from model.cache import SlotCache
from model.pathchat import PathChatSegR1

MOST_SLOTS = {"cpu": 64, "cuda": 256}
"""More rows than these make no step cheaper per row."""
SHARE = 0.4
"""Of the free memory, what slots may take; prefill, encoders and masks need the rest."""


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator holds without using it is free as well.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fit_slots(model: PathChatSegR1, prompt: int) -> int:
    """Slots for prompts of at most so many tokens.

    Returns:
        A power of two, at least 1.
    """
    config = model.config
    one = SlotCache.bytes_per_slot(config.language, prompt + config.max_answer_tokens, model.dtype)
    one += config.max_answer_tokens * config.language.dim * model.dtype.itemsize
    room = min(MOST_SLOTS[model.device.type], int(SHARE * free_bytes(model.device)) // one)
    return 1 << max(0, room.bit_length() - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in told or "can't allocate memory" in told)
