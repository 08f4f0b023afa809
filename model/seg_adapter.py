"""The bridge from language to masks: the hidden state of `<SEG>` becomes a prompt of the mask decoder.

Source: Liu et al. 2026, PathChat-SegR1, §3.1.
"""

from torch import Tensor, nn


class MlpAdapter(nn.Module):
    """h → h → C with ReLU, as LISA's projection."""

    def __init__(self, language_dim: int, prompt_dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(language_dim, language_dim), nn.ReLU(), nn.Linear(language_dim, prompt_dim)
        )

    def forward(self, states: Tensor) -> Tensor:
        """(M, H) → (M, C)."""
        return self.layers(states)


class BottleneckAdapter(nn.Module):
    """Down, GELU, up, with a linear skip."""

    def __init__(self, language_dim: int, prompt_dim: int, ratio: float = 0.25):
        super().__init__()
        hidden = max(8, int(language_dim * ratio))
        self.down = nn.Linear(language_dim, hidden)
        self.up = nn.Linear(hidden, prompt_dim)
        self.skip = nn.Linear(language_dim, prompt_dim)

    def forward(self, states: Tensor) -> Tensor:
        """(M, H) → (M, C)."""
        return self.skip(states) + self.up(nn.functional.gelu(self.down(states)))


def build_seg_adapter(kind: str, language_dim: int, prompt_dim: int) -> nn.Module:
    """The Seg-Adapter by name.

    Raises:
        ValueError: `kind` is neither `mlp`, `bottleneck` nor `linear`.
    """
    kinds = {"mlp": MlpAdapter, "bottleneck": BottleneckAdapter, "linear": nn.Linear}  # the last for comparison
    if kind not in kinds:
        raise ValueError(f"adapter={kind!r}: accepted are {sorted(kinds)}")
    return kinds[kind](language_dim, prompt_dim)
