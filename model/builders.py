"""Named variants: each holds only its numbers, the wiring is `PathChatSegR1`'s."""

from dataclasses import replace

from model.config import PathChatConfig
from model.data.concepts import CONCEPTS
from model.pathchat import PathChatSegR1
from model.tokenizer import PathTokenizer


def tiny_config(**changes: object) -> PathChatConfig:
    """The shipped CPU model: at most 12 M parameters, 224-px tiles."""
    names = tuple(concept.name for concept in CONCEPTS.values())
    config = PathChatConfig(name="tiny", dense_classes=tuple(CONCEPTS), targets=names)
    return replace(config, **changes)


def build(config: PathChatConfig, tokenizer: PathTokenizer) -> PathChatSegR1:
    """A freshly initialised model; seed torch before you call it.

    Raises:
        ValueError: the tokenizer has more tokens than the language model has rows.
    """
    if len(tokenizer) > config.language.vocabulary:
        raise ValueError(f"tokenizer has {len(tokenizer)} tokens, the language model {config.language.vocabulary} rows")
    return PathChatSegR1(config, tokenizer)
