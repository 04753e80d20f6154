"""Guards that classify every token with a head of their own, after the checkpoints of Qwen3Guard-Stream.

Such a checkpoint holds a Qwen3 backbone and, for the response, ``risk_level_category_pre`` (D -> P, no bias), an RMS
norm and ``risk_level_head`` (P -> classes, no bias). They are built here from public parts of transformers, so that no
remote code runs; the heads for the user's turn, for categories and for words are not loaded.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model, Qwen3PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from fastdss.upstream.transformers import ignore_when_loading, qwen3_norm


class TokenHeadModel(Qwen3PreTrainedModel):
    """``logits[..., t, :] = risk_level_head(norm(pre(hidden[..., t, :])))``: ``[B, T, classes]``, one class per token.

    ``model`` is the backbone whose output passes ``pre`` and ``norm``, ``risk_level_head`` the output embeddings, so
    everything that reads rows of a language model's head reads classes here.
    """

    config_class = Qwen3Config

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        self.model = Qwen3Model(config)
        self.risk_level_category_pre = nn.Linear(config.hidden_size, config.guard_inner_size, bias=False)
        self.risk_level_category_layernorm = qwen3_norm(config.guard_inner_size, config.rms_norm_eps)
        self.risk_level_head = nn.Linear(config.guard_inner_size, config.num_risk_level, bias=False)
        self.model.register_forward_hook(self._project)
        ignore_when_loading(self, [r"^category_head", r"^query_", r"^lm_head"])
        self.post_init()  # type: ignore[no-untyped-call]

    def _project(self, module: nn.Module, args: Any, output: BaseModelOutputWithPast) -> BaseModelOutputWithPast:
        hidden = self.risk_level_category_pre(output.last_hidden_state)
        output.last_hidden_state = self.risk_level_category_layernorm(hidden)
        return output

    def get_output_embeddings(self) -> nn.Linear:
        return self.risk_level_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Logits of the last ``logits_to_keep`` tokens (0: of all); no cache of keys and values is returned."""
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return CausalLMOutputWithPast(logits=self.risk_level_head(output.last_hidden_state[:, -logits_to_keep:]))
