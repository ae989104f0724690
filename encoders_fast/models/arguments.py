"""The order of arguments that the heads of the attending families share, one class for each order, over the tasks."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput

from . import tasks
from .inputs import warn_once


class LabelArguments(tasks.Task):
    """The order of arguments of heads for whole sequences and for tokens."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As the backbone's; the class says what `labels` are. Without them there is no loss."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "head_mask": head_mask,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            **kwargs,
        }
        return self.deliver(self.answer(inputs, labels), return_dict)


class SpanArguments(tasks.Task):
    """The order of arguments of question answering."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As the backbone's, and the positions that the class describes."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "head_mask": head_mask,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            **kwargs,
        }
        return self.deliver(self.answer(inputs, start_positions, end_positions), return_dict)


class ChoiceArguments(tasks.Task):
    """The order of arguments of multiple choice."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As the backbone's, with [B, choices, T] in place of [B, T]; the class says what `labels` are."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "head_mask": head_mask,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            **kwargs,
        }
        return self.deliver(self.answer(inputs, labels), return_dict)


class MaskedArguments(tasks.Task):
    """The order of arguments of a masked language model."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.is_decoder:
            warn_once(f"{type(self).__name__} with config.is_decoder=True: no token sees those behind it")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As the backbone's; the class says what `labels` are. Without them there is no loss."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "head_mask": head_mask,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            **kwargs,
        }
        return self.deliver(self.answer(inputs, labels), return_dict)


class CausalArguments(tasks.CausalLM):
    """The order of arguments of a causal language model, and what its generation needs."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if not config.is_decoder:
            warn_once(f"{type(self).__name__} with config.is_decoder=False: every token sees those behind it")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        head_mask: Tensor | None = None,
        cache_position: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As the backbone's; the class says what `labels` are. Without them there is no loss.

        `logits_to_keep`: of how many tokens, counted from the last, logits are wanted, 0 for all; or of which ones: [n]
        or [B, n] int64, or [B, T] bool. With labels it must be 0.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "cache_position": cache_position,
            "head_mask": head_mask,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            **kwargs,
        }
        return self.deliver(self.answer(inputs, labels, logits_to_keep), return_dict)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """transformers' generation counts positions from 0. With `config.exact_positions` they become those that the
        model was trained with, which begin at pad_token_id + 1."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if getattr(self.config, "exact_positions", False) and inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] + (self.config.pad_token_id + 1)
        return inputs


# `generate` reads its arguments' names, "inputs_embeds" above all, off the signature.
functools.update_wrapper(
    CausalArguments.prepare_inputs_for_generation, GenerationMixin.prepare_inputs_for_generation, assigned=()
)
