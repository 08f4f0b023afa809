"""What the ablations found: figures of every arm, paired differences to the full model, verdicts, tables and a plot.

A difference is arm − full on the same questions and seeds, so that below 0 the arm does without something that helped.
Its interval comes from a bootstrap that draws patients, the same for both and for all seeds, and seeds.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluation.bootstrap import group_sums
from model.evaluation.figures import figures, table
from model.evaluation.summary import known
from model.training.ablation_arms import ARMS, FULL

HEADLINE = "giou_with_absent"
"""The figure that the verdict is about: it counts a missed target, a poor mask and a false one alike."""
SHOWN = {
    "dice_with_misses": "Dice, a miss as 0", "dice_emitted": "Dice of emitted masks", "dice_forced": "Dice, forced",
    "sensitivity": "sensitivity", "specificity": "specificity", "balanced_accuracy": "balanced accuracy",
    "giou_with_absent": "gIoU with absent", "bleu4": "BLEU-4", "token_f1": "token F1",
    "contradiction_rate": "contradictions", "seg_extra": "extra `<SEG>`", "answer_words": "words",
}  # fmt: skip
LESS_IS_BETTER = frozenset({"contradiction_rate", "seg_extra"})
UNJUDGED = frozenset({"answer_words"})
HELPS, HURTS, NONE = "helps", "hurts", "no difference shown"
BEGIN, END = "<!-- tables: written by `slidereason evaluate --ablations` -->", "<!-- end of the tables -->"


def terms_of(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(N, F) of N answered rows: the terms of `model.evaluation.figures`, and the words of the answer."""
    words = [len(re.sub(r"</?think>", " ", row["text"]).split()) for row in rows]
    return np.hstack([table([row["terms"] for row in rows]), np.array(words, np.float64)[:, None]])


def all_figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The figures in `SHOWN` of (..., F) summed terms; NaN where undefined."""
    found = figures(sums[..., :-1])
    found["answer_words"] = sums[..., -1] / sums[..., 0]  # the first term counts rows
    return {name: found[name] for name in SHOWN}


def differences(
    ours: np.ndarray, theirs: np.ndarray, groups: Sequence[Hashable], resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Paired differences, mean over seeds, with their 95 % intervals over patients and seeds.

    Args:
        ours, theirs: (S, N, F) terms of the same N rows under the same S seeds.
        groups: N patients.
        resamples, seed: of the bootstrap.

    Returns:
        Figure → `difference`, ours − theirs, `interval`, low and high, and `by_seed`; None where undefined.
    """
    rng = np.random.default_rng(seed)
    n_seeds, n_groups = len(ours), len(set(groups))
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)
    drawn = rng.integers(n_seeds, size=(resamples, n_seeds))
    values: dict[str, list[np.ndarray]] = {name: [] for name in SHOWN}
    singles: dict[str, list[float]] = {name: [] for name in SHOWN}
    for one, other in zip(ours, theirs, strict=True):
        resampled = [all_figures(weights @ group_sums(side, groups)) for side in (one, other)]
        whole = [all_figures(side.sum(axis=0)) for side in (one, other)]
        for name in SHOWN:
            values[name].append(resampled[0][name] - resampled[1][name])
            singles[name].append(float(whole[0][name] - whole[1][name]))
    return {name: _difference(singles[name], np.stack(values[name]), drawn) for name in SHOWN}


def _difference(singles: list[float], values: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """Of one figure: `values` (S, B) by seed and resample, `drawn` (B, S) which seeds each resample takes."""
    spread = values[drawn, np.arange(len(drawn))[:, None]].mean(axis=1)
    spread = spread[~np.isnan(spread)]
    mean = float(np.mean(singles))
    return {
        "difference": None if np.isnan(mean) else mean,
        "interval": [float(edge) for edge in np.quantile(spread, (0.025, 0.975))] if len(spread) else None,
        "by_seed": [None if np.isnan(value) else value for value in singles],
    }


def verdict(name: str, interval: Sequence[float] | None) -> str | None:
    """Whether what an arm leaves out helps, by the interval of arm − full; None for what is neither good nor bad."""
    if interval is None or name in UNJUDGED:
        return None
    low, high = (-interval[1], -interval[0]) if name in LESS_IS_BETTER else interval
    return HELPS if high < 0 else HURTS if low > 0 else NONE


def compare_arms(told: Mapping[str, Mapping[int, Mapping[str, Any]]], resamples: int = 2000) -> dict[str, Any]:
    """Every arm's figures, and their differences to the full model's.

    Args:
        told: arm → seed → set → answered rows, the same seeds and rows in every arm.
        resamples: of the bootstrap.

    Returns:
        Arm → set → `by_seed`, `mean`, and but for the full model `difference`, each figure with its `verdict`.

    Raises:
        ValueError: an arm answered other rows than the full model.
    """
    found: dict[str, Any] = {}
    for arm, by_seed in told.items():
        found[arm] = {}
        for name in next(iter(by_seed.values())):
            mine = np.stack([terms_of(by_seed[seed][name]) for seed in by_seed])
            single = {seed: known(all_figures(terms.sum(0))) for seed, terms in zip(by_seed, mine, strict=True)}
            found[arm][name] = {"by_seed": {str(seed): one for seed, one in single.items()}, "mean": _means(single)}
            if arm == FULL or FULL not in told:
                continue
            rows = [by_seed[seed][name] for seed in by_seed]
            theirs = [told[FULL][seed][name] for seed in by_seed]
            if any([r["id"] for r in a] != [r["id"] for r in b] for a, b in zip(rows, theirs, strict=True)):
                raise ValueError(f"arm {arm!r}, set {name!r}: not the rows of the full model")
            groups = [row["group"] for row in rows[0]]
            apart = differences(mine, np.stack([terms_of(r) for r in theirs]), groups, resamples)
            for figure, one in apart.items():
                one["verdict"] = verdict(figure, one["interval"])
            found[arm][name]["difference"] = apart
    return found


def _means(single: Mapping[int, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Of each figure over the seeds; None where it is undefined under one."""
    found = {}
    for name in SHOWN:
        values = [one[name] for one in single.values()]
        found[name] = None if None in values else float(np.mean(values))
    return found


def tables(results: Mapping[str, Any]) -> str:
    """The tables as Markdown, after Tables 4, 5 and 6 of the paper, with what every arm was given.

    Args:
        results: of `slidereason evaluate --ablations`.
    """
    arms, seeds = results["arms"], results["seeds"]
    head = (
        f"Budget `{results['budget']}`, seeds {', '.join(map(str, seeds))}, {results['parameters']:,} parameters. "
        f"Brackets hold 95 % intervals of the difference, arm − full, over patients and seeds."
    )
    blocks = [head]
    for name, told in results["tests"].items():
        about = f"`{name}`: {told['questions']} questions, {told['absent']} about what is absent, "
        about += f"{told['patients']} patients"
        blocks += [f"## Components, {about}", _components(arms, name)]
        if any(arms[arm]["kind"] == "rl" for arm in arms):
            blocks += [f"## SO-GRPO, `{name}`", _reinforcement(arms, name)]
        blocks += [f"## Words, `{name}`", _words(arms, name)]
    blocks += ["## What each arm was given", _budgets(arms)]
    return "\n\n".join(blocks) + "\n"


def _components(arms: Mapping[str, Any], test: str) -> str:
    """After Table 4."""
    figures_shown = ("dice_with_misses", "balanced_accuracy", "giou_with_absent")
    shown = [f"{SHOWN[figure]} (difference)" for figure in figures_shown]
    lines = [["type", "arm", *shown, "the component (by gIoU)", "(by Dice)"]]
    for arm in _of_kinds(arms, ("full", "architecture", "training", "reward")):
        told = arms[arm]["sets"][test]
        verdicts = [_verdict(told, figure) for figure in (HEADLINE, "dice_with_misses")]
        lines.append([arms[arm]["kind"], arms[arm]["words"], *(_cell(told, f) for f in figures_shown), *verdicts])
    return _markdown(lines)


def _reinforcement(arms: Mapping[str, Any], test: str) -> str:
    """After Table 5."""
    lines = [[
        "arm", "Dice, a miss as 0", "gIoU with absent (difference)", "specificity", "steps to the best reward",
        "gradient variance", "the component (by gIoU)",
    ]]  # fmt: skip
    chosen = [arm for arm in arms if arm in (FULL, "no-rl") or arms[arm]["kind"] in ("rl", "reward")]
    for arm in sorted(chosen, key=list(ARMS).index):
        told = arms[arm]["sets"][test]
        course = list(arms[arm]["course"].values())
        went = [f"{np.mean([c[key] for c in course]):.3g}" if course else "–" for key in _COURSE]
        mean = told["mean"]
        lines.append([
            arms[arm]["words"], _number(mean["dice_with_misses"]), _cell(told, HEADLINE),
            _number(mean["specificity"]), *went, _verdict(told, HEADLINE),
        ])  # fmt: skip
    return _markdown(lines)


_COURSE = ("best_step", "gradient_variance")


def _words(arms: Mapping[str, Any], test: str) -> str:
    """After Table 6, whose rows are models; here they are arms."""
    shown = ("bleu4", "token_f1", "contradiction_rate", "answer_words", "seg_extra")
    lines = [["arm", *(SHOWN[figure] for figure in shown), "the component (by token F1)"]]
    for arm in sorted(arms, key=list(ARMS).index):
        told = arms[arm]["sets"][test]
        cells = [_cell(told, f) if f in ("bleu4", "token_f1") else _number(told["mean"][f]) for f in shown]
        lines.append([arms[arm]["words"], *cells, _verdict(told, "token_f1")])
    return _markdown(lines)


def _budgets(arms: Mapping[str, Any]) -> str:
    """Steps, pictures and seconds of each arm's stages, and what stands in for what is left out."""
    lines = [["arm", "stages (steps)", "pictures seen", "answers drawn", "seconds", "what it does instead"]]
    for arm in sorted(arms, key=list(ARMS).index):
        spent = arms[arm]["budget"]
        stages = ", ".join(f"{one['stage']} {one['steps']}" for one in spent["stages"])
        lines.append([
            arms[arm]["words"], stages, f"{spent['pictures']:,}", f"{spent['answers_drawn']:,}",
            f"{spent['seconds']:.0f}", arms[arm]["note"] or "–",
        ])  # fmt: skip
    return _markdown(lines)


def _of_kinds(arms: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    return [arm for arm in ARMS if arm in arms and arms[arm]["kind"] in kinds]


def _cell(told: Mapping[str, Any], figure: str) -> str:
    """A mean, with its difference and interval where there is one."""
    cell = _number(told["mean"][figure])
    apart = told.get("difference", {}).get(figure, {})
    if apart.get("interval") is None:
        return cell
    low, high = apart["interval"]
    return f"{cell} ({apart['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"


def _verdict(told: Mapping[str, Any], figure: str) -> str:
    return told.get("difference", {}).get(figure, {}).get("verdict") or "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest))


def write_table(path: Path, text: str) -> None:
    """Put the tables into a page, between its marks where it has them, else as a page of their own."""
    body = f"{BEGIN}\n\n{text}\n{END}\n"
    if path.is_file() and BEGIN in (page := path.read_text(encoding="utf-8")) and END in page:
        before, _, rest = page.partition(BEGIN)
        body = before + body.rstrip("\n") + rest.partition(END)[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body, encoding="utf-8")


def draw(results: Mapping[str, Any], path: Path) -> None:
    """A PNG: for each set the arms' differences to the full model with their intervals, by gIoU and by Dice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = [arm for arm in ARMS if arm in results["arms"] and arm != FULL]
    tests = list(results["tests"])
    figure = Figure(figsize=(5.2 * len(tests) + 2.5, 0.42 * len(arms) + 1.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(tests), sharey=True, squeeze=False)[0]
    for axis, test in zip(axes, tests, strict=True):
        for number, name in enumerate((HEADLINE, "dice_with_misses")):
            for place, arm in enumerate(arms):
                apart = results["arms"][arm]["sets"][test].get("difference", {}).get(name)
                if apart is None or apart["interval"] is None:
                    continue
                value, (low, high) = apart["difference"], apart["interval"]
                axis.errorbar(
                    value, place + 0.2 * (number - 0.5), xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                    fmt="os"[number], color=f"C{number}", capsize=2, label=SHOWN[name] if place == 0 else None,
                )  # fmt: skip
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_title(test)
        axis.set_xlabel("arm − full (left of 0: what is left out helps)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(arms)), [results["arms"][arm]["words"] for arm in arms])
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
