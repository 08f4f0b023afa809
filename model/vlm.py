"""The Qwen2.5-VL language model, with its own vision tower taken out.

Image tokens arrive already projected (`model.vision`), so `visual` is deleted. Positions are always passed explicitly:
without them they would silently become one-dimensional.

Source: Bai et al. 2025, Qwen2.5-VL; Liu et al. 2026, §3.1.
"""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPast

from model.config import LanguageConfig


def qwen_config(config: LanguageConfig) -> Qwen2_5_VLConfig:
    """The `transformers` configuration of this language model, with the smallest vision tower it can have."""
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": config.dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "intermediate_size": config.mlp_dim,
            "vocab_size": config.vocabulary,
            "max_position_embeddings": 128_000,
            "rms_norm_eps": config.rms_eps,
            "tie_word_embeddings": config.tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_section": list(config.mrope_section),
            },
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        },
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 1, "intermediate_size": 16, "out_hidden_size": 16},
        tie_word_embeddings=config.tied,
    )


class LanguageModel(nn.Module):
    """Embeddings in, final-norm states out; where `tied`, the word embedding doubles as the output layer."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        qwen = Qwen2_5_VLForConditionalGeneration(qwen_config(config))
        del qwen.model.visual
        self.tied = config.tied
        self.qwen = qwen

    def _apply(self, fn: Callable, recurse: bool = True) -> "LanguageModel":
        """Moves and casts go through here; the angles of the positions stay fp32, or far positions would blur."""
        super()._apply(fn, recurse)
        self.settle()
        return self

    def settle(self) -> None:
        """Compute what no checkpoint holds, where the weights are: the angles, and the tied output layer."""
        text, embedding = self.text_model, self.text_model.embed_tokens.weight
        rotary = text.rotary_emb
        angles, _ = rotary.compute_default_rope_parameters(text.config)
        rotary.inv_freq = angles.to(embedding.device)
        rotary.original_inv_freq = rotary.inv_freq.clone()
        if self.tied:
            self.qwen.lm_head.weight = embedding

    @property
    def text_model(self) -> nn.Module:
        """The decoder stack itself."""
        return self.qwen.model.language_model

    def embed(self, ids: Tensor) -> Tensor:
        """(…) token ids → (…, H)."""
        return self.text_model.embed_tokens(ids)

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor | None = None, cache: object = None) -> Tensor:
        """Run the decoder stack.

        Args:
            embeds: (B, L, H).
            positions: (3, B, L) int64: temporal, row and column position of each token.
            mask: (B, 1, L, S) bool, True where attention is allowed; None means plain causal attention.
            cache: a transformers cache to read and extend, or None.

        Returns:
            (B, L, H) states after the final norm.
        """
        out: BaseModelOutputWithPast = self.text_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        """(…, H) states → (…, V) next-token logits."""
        return self.qwen.lm_head(states)
