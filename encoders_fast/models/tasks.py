"""The tasks, each written once for every family.

A head is a family's PreTrainedModel with one task mixed in before it: `class FNetForMaskedLM(MaskedLM, FNetHead)`. The
family says what its parts are called (`Family` below); the task adds its own parameters, under the names that
checkpoints have, and turns the backbone's output into logits and a loss in `answer`. The order of a head's arguments
belongs to the family too: its `forward` collects them and calls `answer`.

Source: transformers' modeling_fnet.py, modeling_mobilebert.py and modeling_big_bird.py, which agree on what is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import (
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import PreTrainedModel

from .inputs import fold_choices, leading_shape
from .losses import check_labels, check_sequence_labels, class_loss, next_token_loss, sequence_loss, span_loss
from .padding import counts_padding

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel as _Base
else:
    _Base = object


class Family(_Base):
    """What a family tells the tasks. Its PreTrainedModel for heads sets these."""

    backbone: type[PreTrainedModel]
    """The family's Model; it takes `add_pooling_layer`."""
    linear: type[nn.Linear] = nn.Linear
    """What a head of one matrix is."""
    always_pools: bool
    """Whether heads that read single tokens have a pooler in their checkpoints all the same."""
    language_head: type[nn.Module]
    """Token logits from hidden states; has `decoder` (tied to the word embeddings) and `bias`."""
    language_head_path: str
    """Where it stands: "cls.predictions" or "lm_head"."""
    pretraining_output: type[ModelOutput]
    masked_loss_alone: bool
    """Whether pre-training with `labels` and no `next_sentence_label` has a loss."""
    caches_with_labels = False
    """Whether a causal language model that is given labels returns its cache as well."""
    removes_padding = True
    """Whether the backbone may leave padded tokens out, and takes `keep_padding`."""
    token_loss_skips_padding = False
    """Whether token classification counts no label of a token that attention_mask hides."""


class Task(Family):
    """A backbone and a head. Subclasses say what the head is, and what it answers."""

    pools = False
    cls: Any
    answer: Callable[..., ModelOutput]
    """The head's output for the backbone's inputs, a dictionary, and the task's labels."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        backbone: Any = self.backbone(config, add_pooling_layer=self.pools or self.always_pools)
        backbone.unused = () if self.pools or not self.always_pools else ("pooler",)
        setattr(self, self.base_model_prefix, backbone)
        self.add_head(config)
        self.post_init()

    def add_head(self, config: Any) -> None:
        raise NotImplementedError

    def encode(self, inputs: dict[str, Any], *, keep_padding: bool = False) -> Any:
        """`keep_padding` where the task's loss looks at padded tokens."""
        if keep_padding and self.removes_padding:
            inputs = {**inputs, "keep_padding": True}
        return self.base_model(**inputs, return_dict=True)

    def deliver(self, output: ModelOutput, return_dict: bool | None) -> ModelOutput | tuple[Any, ...]:
        """`output`, or the tuple of what is in it where the caller or the configuration wants that."""
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def carried(encoded: Any) -> dict[str, Any]:
    """The backbone's outputs that a head passes on."""
    names = ("hidden_states", "attentions")
    return {name: encoded[name] for name in names if encoded.get(name) is not None}


def head_dropout(config: Any) -> nn.Dropout:
    """Dropout before a classifier: `classifier_dropout` where a family has it and it is set."""
    probability = getattr(config, "classifier_dropout", None)
    return nn.Dropout(config.hidden_dropout_prob if probability is None else probability)


class LanguageModel(Task):
    """A task with a distribution over the vocabulary for every token."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        path = getattr(cls, "language_head_path", None)
        if path is not None:
            cls._tied_weights_keys = {
                f"{path}.decoder.bias": f"{path}.bias",
                f"{path}.decoder.weight": f"{cls.base_model_prefix}.embeddings.word_embeddings.weight",
            }

    def add_head(self, config: Any) -> None:
        owner: nn.Module = self
        *outer, name = self.language_head_path.split(".")
        for part in outer:
            owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.add_module(name, self.language_head(config))

    @property
    def language(self) -> Any:
        return self.get_submodule(self.language_head_path)

    def get_output_embeddings(self) -> nn.Module:
        return self.language.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language.decoder = new_embeddings
        self.language.bias = new_embeddings.bias


class MaskedLM(LanguageModel):
    """Token logits [B, T, V]; labels [B, T], -100 where a token does not count."""

    def answer(self, inputs: dict[str, Any], labels: Tensor | None = None) -> MaskedLMOutput:
        B, T = leading_shape(inputs)
        check_labels("labels", labels, (B, T), (B * T,))
        encoded = self.encode(inputs, keep_padding=counts_padding(labels, inputs))
        logits = self.language(encoded.last_hidden_state)
        loss = None if labels is None else class_loss(logits, labels)
        return MaskedLMOutput(loss=loss, logits=logits, **carried(encoded))


class CausalLM(LanguageModel):
    """Logits [B, T, V] of the token behind each token; labels [B, T] are the tokens themselves, -100 where one does not
    count."""

    def answer(
        self, inputs: dict[str, Any], labels: Tensor | None = None, logits_to_keep: int | Tensor = 0
    ) -> CausalLMOutputWithCrossAttentions:
        B, T = leading_shape(inputs)
        check_labels("labels", labels, (B, T))
        if labels is not None:
            if not isinstance(logits_to_keep, int) or logits_to_keep != 0:
                raise ValueError(f"with labels every logit counts: logits_to_keep must be 0; it is {logits_to_keep}")
            if not self.caches_with_labels:
                inputs = {**inputs, "use_cache": False}
        encoded = self.encode(inputs, keep_padding=counts_padding(labels, inputs))
        logits = self.language(kept_states(encoded.last_hidden_state, logits_to_keep))
        loss = None if labels is None else next_token_loss(logits, labels, inputs.get("num_items_in_batch"))
        names = ("past_key_values", "cross_attentions")
        passed = {name: encoded[name] for name in names if encoded.get(name) is not None}
        return CausalLMOutputWithCrossAttentions(loss=loss, logits=logits, **carried(encoded), **passed)


def kept_states(h: Tensor, keep: int | Tensor) -> Tensor:
    """Of h [B, T, D] the last `keep` tokens, all for 0, or those that a tensor names: [n] or [B, n] by their numbers,
    [B, T] by True."""
    if isinstance(keep, int):
        return h[:, -keep:]
    if keep.dim() == 1:
        return h[:, keep]
    return h[keep] if keep.dtype == torch.bool else h.take_along_dim(keep[..., None], dim=1)


class PreTraining(LanguageModel):
    """Token logits [B, T, V] and sentence order logits [B, 2]; the loss is the sum of both tasks' losses."""

    pools = True

    def add_head(self, config: Any) -> None:
        super().add_head(config)
        self.cls.seq_relationship = self.linear(config.hidden_size, 2)

    def answer(
        self, inputs: dict[str, Any], labels: Tensor | None = None, next_sentence_label: Tensor | None = None
    ) -> ModelOutput:
        B, T = leading_shape(inputs)
        check_labels("labels", labels, (B, T), (B * T,))
        check_labels("next_sentence_label", next_sentence_label, (B,), (B, 1))
        encoded = self.encode(inputs, keep_padding=counts_padding(labels, inputs))
        logits = self.language(encoded.last_hidden_state)
        order = self.cls.seq_relationship(encoded.pooler_output)
        loss = None
        if labels is not None and (next_sentence_label is not None or self.masked_loss_alone):
            loss = class_loss(logits, labels)
            if next_sentence_label is not None:
                loss = loss + class_loss(order, next_sentence_label)
        return self.pretraining_output(
            loss=loss, prediction_logits=logits, seq_relationship_logits=order, **carried(encoded)
        )


class NextSentencePrediction(Task):
    """Sentence order logits [B, 2]; labels [B]: 0 where the second sentence follows the first, 1 where it is random."""

    pools = True

    def add_head(self, config: Any) -> None:
        self.cls = nn.Module()
        self.cls.seq_relationship = self.linear(config.hidden_size, 2)

    def answer(self, inputs: dict[str, Any], labels: Tensor | None = None) -> NextSentencePredictorOutput:
        B, _ = leading_shape(inputs)
        check_labels("labels", labels, (B,), (B, 1))
        encoded = self.encode(inputs)
        logits = self.cls.seq_relationship(encoded.pooler_output)
        loss = None if labels is None else class_loss(logits, labels)
        return NextSentencePredictorOutput(loss=loss, logits=logits, **carried(encoded))


class SequenceClassification(Task):
    """Class logits [B, num_labels] from the pooler; labels [B] or [B, num_labels], see `losses.problem_type`."""

    pools = True
    classifier: nn.Module

    def add_head(self, config: Any) -> None:
        self.num_labels = config.num_labels
        self.dropout = head_dropout(config)
        self.classifier = self.linear(config.hidden_size, config.num_labels)

    def classify(self, encoded: Any) -> Tensor:
        return self.classifier(self.dropout(encoded.pooler_output))

    def answer(self, inputs: dict[str, Any], labels: Tensor | None = None) -> SequenceClassifierOutput:
        B, _ = leading_shape(inputs)
        check_sequence_labels(self.config, labels, B)
        encoded = self.encode(inputs)
        logits = self.classify(encoded)
        loss = None if labels is None else sequence_loss(self.config, logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, **carried(encoded))


class ClassificationHead(nn.Module):
    """out_proj(dropout(act(dense(dropout(h of the first token))))): [B, T, D] -> [B, num_labels]."""

    def __init__(self, config: Any, act: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = head_dropout(config)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)
        self.act = act

    def forward(self, h: Tensor) -> Tensor:
        h = self.act(self.dense(self.dropout(h[:, 0])))
        return self.out_proj(self.dropout(h))


class FirstTokenClassification(SequenceClassification):
    """Sequence classification by a head of its own in place of the pooler."""

    pools = False

    def add_head(self, config: Any) -> None:
        self.num_labels = config.num_labels
        self.classifier = ClassificationHead(config)

    def classify(self, encoded: Any) -> Tensor:
        return self.classifier(encoded.last_hidden_state)


class MultipleChoice(Task):
    """Choice logits [B, choices]; every input is [B, choices, T, ...], labels [B] hold the right choice."""

    pools = True

    def add_head(self, config: Any) -> None:
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = self.linear(config.hidden_size, 1)

    def answer(self, inputs: dict[str, Any], labels: Tensor | None = None) -> MultipleChoiceModelOutput:
        B, choices, inputs = fold_choices(inputs)
        check_labels("labels", labels, (B,), (B, 1))
        encoded = self.encode(inputs)
        logits = self.classifier(self.dropout(encoded.pooler_output)).view(B, choices)
        loss = None if labels is None else class_loss(logits, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, **carried(encoded))


class TokenClassification(Task):
    """Class logits [B, T, num_labels]; labels [B, T], -100 where a token does not count."""

    def add_head(self, config: Any) -> None:
        self.num_labels = config.num_labels
        self.dropout = head_dropout(config)
        self.classifier = self.linear(config.hidden_size, config.num_labels)

    def answer(self, inputs: dict[str, Any], labels: Tensor | None = None) -> TokenClassifierOutput:
        B, T = leading_shape(inputs)
        check_labels("labels", labels, (B, T), (B * T,))
        keep = counts_padding(labels, inputs) and not self.token_loss_skips_padding
        encoded = self.encode(inputs, keep_padding=keep)
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        mask = inputs.get("attention_mask") if self.token_loss_skips_padding else None
        if labels is not None and mask is not None and mask.dim() == 2:
            labels = labels.view(B, T).masked_fill(mask.expand(B, T).to(labels.device) != 1, -100)
        loss = None if labels is None else class_loss(logits, labels)
        return TokenClassifierOutput(loss=loss, logits=logits, **carried(encoded))


class QuestionAnswering(Task):
    """Logits [B, T] for the answer's first and for its last token; start_positions and end_positions are [B]."""

    def add_head(self, config: Any) -> None:
        if config.num_labels != 2:
            raise ValueError(f"question answering needs num_labels = 2, start and end; it is {config.num_labels}")
        self.num_labels = config.num_labels
        self.qa_outputs = self.linear(config.hidden_size, config.num_labels)

    def answer(
        self, inputs: dict[str, Any], start_positions: Tensor | None = None, end_positions: Tensor | None = None
    ) -> QuestionAnsweringModelOutput:
        B, _ = leading_shape(inputs)
        check_labels("start_positions", start_positions, (B,), (B, 1))
        check_labels("end_positions", end_positions, (B,), (B, 1))
        encoded = self.encode(inputs, keep_padding=True)  # a softmax over positions is one over padded ones too
        start_logits, end_logits = (
            logits.squeeze(-1).contiguous() for logits in self.qa_outputs(encoded.last_hidden_state).split(1, dim=-1)
        )
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits, **carried(encoded)
        )
