"""One line of an evaluation manifest before it is written, and the questions that the taught concepts raise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.data.chains import (
    EXEMPLAR_PHRASE,
    MIN_SHARE,
    answer_absent,
    answer_present,
    answer_unknown,
    largest,
)
from model.data.concepts import askable
from model.data.morphology import measure
from model.data.queries import sample_query, sample_unknown_query
from model.data.scene import Scene

ABSENT_SHARE = 0.45
IMPLIED_SHARE = 0.5
UNKNOWN_QUESTIONS = 30
PER_PICTURE = 2


@dataclass(frozen=True)
class Question:
    """One line of a manifest, before its pictures are written.

    Attributes:
        scene: the picture.
        concept: the key of what is asked for; None for something never taught.
        query: the wording.
        kind: `present-named`, `present-implied`, `absent-named`, `absent-implied` or `unknown`; of a one-shot question
            what its exemplar shows.
        exemplar: another picture, whose mask of the concept is shown; None for a question that speaks for itself.
        zero_shot_query: what to ask when the exemplar is taken away.
    """

    scene: Scene
    concept: str | None
    query: str
    kind: str
    exemplar: Scene | None = None
    zero_shot_query: str | None = None

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool of the target, or None where it is absent or unknown."""
        return None if self.concept is None else mask_of(self.scene, self.concept)


def mask_of(scene: Scene, concept: str) -> np.ndarray | None:
    """(H, W) bool of a concept, taught or not, or None where the scene does not show it."""
    return (scene.masks | askable(scene)[0]).get(concept)


def reference_chain(question: Question, rng: np.random.Generator) -> str:
    """The answer that is due, of the whole picture, as training would have it (`model/data/chains.py`).

    Args:
        question: what is asked.
        rng: chooses between templates.
    """
    scene, concept = question.scene, question.concept
    if concept is None:
        return answer_unknown(question.query, rng)
    phrase = None if question.exemplar is None else EXEMPLAR_PHRASE
    mask = question.mask
    if mask is not None and mask.any():
        facts = {concept: measure(scene.image, mask, scene.mpp)}
        return answer_present({concept: mask}, concept, facts, rng, phrase)
    seen = {key: there for key, there in askable(scene)[0].items() if there.mean() >= MIN_SHARE}
    other = largest(seen, excluding=concept)
    facts = {} if other is None else {other: measure(scene.image, seen[other], scene.mpp)}
    return answer_absent(concept, seen, facts, rng, phrase)


def ask(
    scenes: Sequence[Scene], concepts: Sequence[str], seed: int, absent_share: float = ABSENT_SHARE,
    per_picture: int = PER_PICTURE,
) -> list[Question]:  # fmt: skip
    """Questions about scenes, in held-out wordings, with a fixed share of absent targets.

    A scene that cannot be asked the way its lot says (nothing known to be absent, or present) is asked the other way.

    Args:
        scenes: what to ask about.
        concepts: keys that may be asked for.
        seed: of lots and wordings.
        absent_share: share of the questions about something that is known not to be there.
        per_picture: questions about each scene.
    """
    rng = np.random.default_rng(seed)
    total = len(scenes) * per_picture
    lots = rng.permutation(np.arange(total) < round(absent_share * total))
    questions: list[Question] = []
    for index, wants_absent in enumerate(lots):
        scene = scenes[index % len(scenes)]
        present, absent = askable(scene)
        here = [key for key in concepts if key in present]
        gone = [key for key in concepts if key in absent]
        choices = gone if (wants_absent and gone) or not here else here
        if not choices:
            continue
        concept = choices[rng.integers(len(choices))]
        implied = bool(rng.random() < IMPLIED_SHARE)
        query, _ = sample_query(concept, rng, split="heldout", implied=implied)
        presence = "present" if concept in present else "absent"
        questions.append(Question(scene, concept, query, f"{presence}-{'implied' if implied else 'named'}"))
    return questions


def ask_each(scenes: Sequence[Scene], concepts: Sequence[str], seed: int) -> list[Question]:
    """Every scene asked for each of its concepts and for as many absent ones, named and implied: no lots.

    Args:
        scenes: what to ask about.
        concepts: keys that may be asked for; of the absent ones, `seed` chooses.
        seed: of absent concepts and wordings, which are held out of training.

    Returns:
        The questions of one scene stand together, so that its picture is encoded once.
    """
    rng = np.random.default_rng([seed, 6])
    questions = []
    for scene in scenes:
        present, absent = askable(scene)
        here, gone = ([key for key in concepts if key in keys] for keys in (present, absent))
        few = rng.permutation(len(gone))[: max(1, len(here))]
        for presence, keys in (("present", here), ("absent", [gone[index] for index in few])):
            for key in keys:
                for implied in (False, True):
                    query, how = sample_query(key, rng, split="heldout", implied=implied)
                    questions.append(Question(scene, key, query, f"{presence}-{how}"))
    return questions


def ask_unknown(scenes: Sequence[Scene], seed: int, count: int = UNKNOWN_QUESTIONS) -> list[Question]:
    """Questions about things never taught, each worded differently as far as there are wordings, spread over scenes."""
    rng = np.random.default_rng(seed)
    queries: list[str] = []
    for _ in range(50 * count):
        query = sample_unknown_query(rng, split="heldout")
        if query not in queries:
            queries.append(query)
        if len(queries) == count:
            break
    picks = rng.permutation(len(scenes))
    return [
        Question(scenes[picks[index % len(picks)]], None, query, "unknown") for index, query in enumerate(queries)
    ]
