"""Who writes chains: the template, or a model behind an endpoint that is told what was wrong and tries again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from model.chains.checks import Problem, Truth, check_chain
from model.chains.description import describe
from model.chains.endpoint import Endpoint, RequestRefused
from model.chains.prompt import VERSION, answer_in, chain_messages, describe_messages, told_back
from model.chains.rows import Row
from model.data.chains import answer_absent, answer_exemplar, answer_present, answer_unknown


@dataclass(frozen=True)
class Written:
    """What a writer made of one sample.

    Attributes:
        chain: the whole answer, good or not.
        problems: what the checks find wrong with it; empty for a good one.
        generator: `template`, or the model's name.
        versions: of what took part, by name, as texts.
        seed: that it was written with.
        attempts: each text that was written, with its problems, in order.
        description: of the morphology, from step 1; "" for the template.
    """

    chain: str
    problems: tuple[Problem, ...]
    generator: str
    versions: Mapping[str, str]
    seed: int
    attempts: tuple[dict[str, Any], ...] = ()
    description: str = ""


class Writer(Protocol):
    """Writes a chain for a sample."""

    def write(self, row: Row, truth: Truth) -> Written:
        """The best chain it can make, with what is still wrong with it."""


def seed_of(row_id: str, seed: int) -> int:
    """A seed of its own for every sample, whatever the order they are written in; below 2**31."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row_id}".encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class TemplateWriter:
    """The template of `model/data/chains.py`.

    Attributes:
        seed: of the choice between its sentences.
    """

    seed: int = 0

    def write(self, row: Row, truth: Truth) -> Written:
        """A chain from what is measured."""
        seed = seed_of(row.id, self.seed)
        chain = template_chain(row, truth, np.random.default_rng(seed))
        problems = tuple(check_chain(chain, truth))
        attempt = {"text": chain, "problems": [problem.to_json() for problem in problems]}
        return Written(chain, problems, "template", {"template": "1"}, seed, (attempt,))


def template_chain(row: Row, truth: Truth, rng: np.random.Generator) -> str:
    """The template's answer to a row's question; it knows of one target at most."""
    masks = row.read_masks()
    facts = {key: seen.facts for key, seen in truth.seen.items()}
    if row.kind == "exemplar":
        return answer_exemplar(masks, row.concept or "", facts, rng, present=bool(row.targets))
    if row.targets:
        return answer_present(masks, row.targets[0], facts, rng)
    if row.concept is not None:
        return answer_absent(row.concept, masks, facts, rng)
    return answer_unknown(row.query, rng)


@dataclass(frozen=True)
class EndpointWriter:
    """A model behind an endpoint, in two steps.

    Attributes:
        endpoint: who is asked.
        attempts: chains asked for at most, the first included.
        vision: whether it is shown the picture.
        seed: of its sampling.
    """

    endpoint: Endpoint
    attempts: int = 3
    vision: bool = False
    seed: int = 0

    def write(self, row: Row, truth: Truth) -> Written:
        """Describe, then write, then correct until the checks are content or the attempts used up.

        A request that the endpoint does not accept ends the attempts, as one more attempt.

        Raises:
            EndpointRefused, EndpointUnavailable: nothing can be written at present.
        """
        seed = seed_of(row.id, self.seed)
        facts = describe(truth, row.data.get("organ") or "", row.data.get("stain") or "", row.mpp)
        made: list[dict[str, Any]] = []
        chain, problems, description = "", (Problem("no-answer", "nothing was written"),), ""
        generator = self.endpoint.settings.model
        try:
            description = self.endpoint.complete(self._look(row, facts), seed).text
            description = description.rpartition("</think>")[2].strip()
            messages = chain_messages(row.query, facts, description, truth)
            for attempt in range(self.attempts):
                completion = self.endpoint.complete(messages, seed + attempt)
                generator, chain = completion.model, answer_in(completion.text)
                problems = tuple(check_chain(chain, truth))
                made.append({
                    "text": chain, "problems": [problem.to_json() for problem in problems],
                    "requests": completion.attempts, "tokens": completion.tokens,
                })  # fmt: skip
                if not problems:
                    break
                messages = told_back(messages, chain, problems)
        except RequestRefused as refused:
            problems = (Problem("refused", str(refused)),)
            made.append({"text": "", "problems": [problems[0].to_json()]})
        return Written(chain, problems, generator, self._versions(len(made)), seed, tuple(made), description)

    def _look(self, row: Row, facts: str) -> list[dict[str, Any]]:
        """Step 1, with the picture for a model that sees."""
        if not self.vision:
            return describe_messages(row.query, facts)
        masks = row.read_masks()
        return describe_messages(row.query, facts, row.read_image(), [masks[key] for key in row.targets])

    def _versions(self, attempts: int) -> dict[str, str]:
        settings = self.endpoint.settings
        return {
            "prompt": VERSION, "endpoint": settings.told, "endpoint_model": settings.model,
            "temperature": f"{settings.temperature:g}", "vision": "yes" if self.vision else "no",
            "attempts": str(attempts),
        }  # fmt: skip
