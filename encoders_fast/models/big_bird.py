"""BigBird: an encoder, or decoder, whose attention over blocks grows with the length and not with its square; and its
seven heads.

    h = LayerNorm(h + dropout(Wo attention(h)))                    the op block_sparse_attention
    h = LayerNorm(h + dropout(W2 act(W1 h + b1) + b2))

The model is in big_bird_model.py, its layers in big_bird_layers.py, their attention in big_bird_attention.py. Class
names, parameter names, argument order and outputs are those of transformers' modeling_big_bird.py.

Source: Big Bird: Transformers for Longer Sequences (Zaheer et al., 2020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput
from transformers.models.big_bird.modeling_big_bird import (
    BigBirdForPreTrainingOutput,
    BigBirdForQuestionAnsweringModelOutput,
)

from . import tasks
from .activations import activation
from .arguments import LabelArguments, MaskedArguments
from .big_bird_layers import BigBirdIntermediate, BigBirdOutput
from .big_bird_model import BigBirdModel, BigBirdPreTrainedModel
from .configuration import BigBirdConfig
from .inputs import leading_shape, warn_once
from .language_heads import BertLanguageHead
from .losses import check_labels, span_loss

__all__ = [
    "BigBirdConfig",
    "BigBirdForCausalLM",
    "BigBirdForMaskedLM",
    "BigBirdForMultipleChoice",
    "BigBirdForPreTraining",
    "BigBirdForPreTrainingOutput",
    "BigBirdForQuestionAnswering",
    "BigBirdForQuestionAnsweringModelOutput",
    "BigBirdForSequenceClassification",
    "BigBirdForTokenClassification",
    "BigBirdModel",
    "BigBirdPreTrainedModel",
]


class BigBirdHead(tasks.Family, BigBirdPreTrainedModel):
    """What the tasks need to know of BigBird."""

    backbone = BigBirdModel
    always_pools = True
    language_head = BertLanguageHead
    language_head_path = "cls.predictions"
    pretraining_output = BigBirdForPreTrainingOutput
    masked_loss_alone = True
    caches_with_labels = True


class BigBirdForPreTraining(tasks.PreTraining, BigBirdHead):
    """Masked language model and next sentence prediction: prediction_logits [B, T, V], seq_relationship_logits [B, 2].

    labels [B, T] are token ids, and -100 where a token does not count; next_sentence_label [B] is 0 where the second
    sentence follows the first, 1 where it is a random one. The loss needs labels, and is the sum of both where both are
    given.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As BigBirdModel's, and the labels that the class describes."""
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
        return self.deliver(self.answer(inputs, labels, next_sentence_label), return_dict)


class BigBirdForMaskedLM(MaskedArguments, tasks.MaskedLM, BigBirdHead):
    """Masked language model: logits [B, T, V]. labels [B, T] are token ids, and -100 where a token does not count."""


class BigBirdForCausalLM(tasks.CausalLM, BigBirdHead, GenerationMixin):
    """Causal language model, for `generate`: logits [B, T, V] of the token behind each token.

    It is causal where `config.is_decoder` is True, with both types of attention. (transformers' block_sparse lets every
    token see those behind it; `config.causal_block_sparse=False` asks for that.) labels [B, T] are the tokens
    themselves, and -100 where one does not count; the loss compares each with the logits before it.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if not config.is_decoder:
            warn_once(f"{type(self).__name__} with config.is_decoder=False: every token sees those behind it")

    def create_masks_for_generate(self, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """`generate` would make a 4-D mask for a cache of fixed size: the model makes its masks itself."""
        return attention_mask

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        head_mask: Tensor | None = None,
        cache_position: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As BigBirdModel's; the class says what `labels` are. Without them there is no loss.

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


class BigBirdForSequenceClassification(LabelArguments, tasks.FirstTokenClassification, BigBirdHead):
    """Classes or values of a whole sequence: logits [B, num_labels].

    labels are class ids [B] ("single_label_classification"), zeros and ones [B, num_labels]
    ("multi_label_classification") or values [B], with more than one label [B, num_labels] ("regression"). Which of the
    three is `config.problem_type`; where that is None, num_labels = 1 means regression and the dtype of the first
    labels decides otherwise, for good.
    """

    def add_head(self, config: Any) -> None:
        self.num_labels = config.num_labels
        self.classifier = tasks.ClassificationHead(config, activation(config.hidden_act))


class BigBirdForMultipleChoice(LabelArguments, tasks.MultipleChoice, BigBirdHead):
    """Which of several continuations is right? logits [B, choices].

    Inputs have one dimension more than BigBirdModel's: input_ids are [B, choices, T]. labels [B] are the right ones.
    """


class BigBirdForTokenClassification(LabelArguments, tasks.TokenClassification, BigBirdHead):
    """Classes of tokens: logits [B, T, num_labels]. labels [B, T] are class ids, -100 where a token does not count."""


class BigBirdQuestionAnsweringHead(nn.Module):
    """qa_outputs of a feed-forward block like a layer's: [B, T, D] -> [B, T, 2]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.intermediate = BigBirdIntermediate(config)
        self.output = BigBirdOutput(config, config.intermediate_size)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, h: Tensor) -> Tensor:
        return self.qa_outputs(self.output(self.intermediate(self.dropout(h)), h))


class BigBirdForQuestionAnswering(tasks.Task, BigBirdHead):
    """Where in the text is the answer? start_logits and end_logits [B, T].

    The input is a question and a text: [CLS] question [SEP] text [SEP]. question_lengths [B, 1] or [B] count the
    question's tokens, [CLS] and [SEP] included; where they are not given, input_ids up to the first `sep_token_id` are
    the question. Its logits are 1e6 lower but for [CLS], which stands for no answer, and unless token_type_ids are
    given, it has the type 0 and the text the type 1. Neither holds for inputs_embeds without question_lengths.

    start_positions and end_positions [B] are the answer's first and last token; the loss needs both, and a position
    behind the last token does not count.
    """

    qa_classifier: BigBirdQuestionAnsweringHead

    def __init__(self, config: Any, add_pooling_layer: bool = False) -> None:
        self.always_pools = add_pooling_layer  # and nothing reads what it gives
        super().__init__(config)

    def add_head(self, config: Any) -> None:
        self.num_labels = config.num_labels = 2
        self.qa_classifier = BigBirdQuestionAnsweringHead(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        question_lengths: Tensor | None = None,
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
        """As BigBirdModel's, and the lengths and positions that the class describes."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        B, T = leading_shape(inputs)
        check_labels("start_positions", start_positions, (B,), (B, 1))
        check_labels("end_positions", end_positions, (B,), (B, 1))
        check_labels("question_lengths", question_lengths, (B,), (B, 1))
        if question_lengths is None and input_ids is not None and self.config.sep_token_id is not None:
            # Without a separator the question is [CLS] alone.
            question_lengths = (input_ids == self.config.sep_token_id).int().argmax(-1) + 1
        question = None
        if question_lengths is not None:
            question = torch.arange(T, device=question_lengths.device) < question_lengths.view(B, 1)
            token_type_ids = (~question).long() if token_type_ids is None else token_type_ids
        inputs |= {
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "head_mask": head_mask,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            **kwargs,
        }
        encoded = self.encode(inputs, keep_padding=True)  # a softmax over positions is one over padded ones too
        logits = self.qa_classifier(encoded.last_hidden_state)
        if question is not None:
            # In float32 at least: float16 has no 1e6.
            penalty = F.pad(question[:, 1:], (1, 0)).to(logits.device).float() * 1e6
            logits = logits - penalty[..., None]
        start_logits, end_logits = (part.squeeze(-1).contiguous() for part in logits.split(1, dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_logits, end_logits, start_positions, end_positions)
        output = BigBirdForQuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            pooler_output=encoded.pooler_output,
            **tasks.carried(encoded),
        )
        return self.deliver(output, return_dict)
