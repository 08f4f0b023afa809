"""What the words of one answer are worth, beside its mask: when it points, how close to its reference, how true."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from model.evaluation import chain_metrics
from model.evaluation.contradiction import contradictions
from model.evaluation.timing import SegTiming, seg_timing


@dataclass(frozen=True)
class Said:
    """The words of one answer.

    Attributes:
        timing: of its first `<SEG>`; None without one.
        contradicted: aspect → whether the mask contradicts the claim; only claimed ones.
        reference: the chain it is compared with; None where the manifest gives none.
        token_f1: with the reference, 0 without.
        bleu: the counts of `chain_metrics.BLEU_TERMS`; empty without a reference.
    """

    timing: SegTiming | None = None
    contradicted: dict[str, bool] = field(default_factory=dict)
    reference: str | None = None
    token_f1: float = 0.0
    bleu: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its part of a row's entry in the results."""
        sentence = {name: np.float64(value) for name, value in self.bleu.items()}
        chain = {
            "reference": self.reference, "token_f1": self.token_f1, "bleu4": float(chain_metrics.bleu(sentence)),
        } if self.reference is not None else None  # fmt: skip
        return {
            "seg_timing": None if self.timing is None else asdict(self.timing),
            "contradicted": self.contradicted,
            **({} if chain is None else {"chain": chain}),
        }


def hear(text: str, masks: np.ndarray | None, reference: str | None = None) -> Said:
    """Read one answer.

    Args:
        text: the whole answer.
        masks: (K, H, W) bool that came with it, in the frame it saw; None when silent.
        reference: the chain that was due, or None.

    Raises:
        ValueError: there is a reference, and sacrebleu is not installed.
    """
    return Said(
        timing=seg_timing(text), contradicted=contradictions(text, masks), reference=reference,
        token_f1=0.0 if reference is None else chain_metrics.token_f1(text, reference),
        bleu={} if reference is None else chain_metrics.bleu_terms(text, reference),
    )  # fmt: skip
