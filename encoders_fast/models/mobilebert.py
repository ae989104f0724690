"""MobileBERT: an encoder with a wide stream between its layers and a narrow one inside them, and its seven heads.

    q, k, v, u0 = bottleneck_input(h)
    h = bottleneck_ffn(attention(q, k, v), u0, h)

Class names, parameter names, argument order and outputs are those of transformers' modeling_mobilebert.py.

With float16 parameters the hidden states, the pooled ones without `classifier_activation` and what classifiers make of
them are float32: in the published checkpoint they reach 1e7, and float16 ends at 65504. Token logits are float16.

Source: MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices (Sun et al., 2020).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.mobilebert.modeling_mobilebert import MobileBertForPreTrainingOutput

from .. import _dropout
from . import tasks
from .configuration import MobileBertConfig
from .inputs import check_tokens, one_of
from .language_heads import MobileBertLanguageHead
from .masks import Mask, head_masks, make_mask, real_tokens
from .mobilebert_layer import MobileBertLayer, make_norm
from .mobilebert_parts import HasParts
from .mobilebert_stack import all_layers
from .other_frameworks.loading import LoadsOtherFrameworks
from .padding import removable
from .positions import CountsPositions, count_tokens, first_tokens
from .pruning import PrunesHeads
from .unused import NamesUnusedParameters
from .wide import Linear, NoNorm, wide_enough

__all__ = [
    "MobileBertConfig",
    "MobileBertForMaskedLM",
    "MobileBertForMultipleChoice",
    "MobileBertForNextSentencePrediction",
    "MobileBertForPreTraining",
    "MobileBertForPreTrainingOutput",
    "MobileBertForQuestionAnswering",
    "MobileBertForSequenceClassification",
    "MobileBertForTokenClassification",
    "MobileBertModel",
    "MobileBertPreTrainedModel",
]


# ---- the encoder's parts --------------------------------------------------------------------------------------------


class MobileBertEmbeddings(CountsPositions):
    """Words, each beside the next and the previous one, positions and token types: [B, T] -> [B, T, H]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        E, H, P = config.embedding_size, config.hidden_size, config.max_position_embeddings
        self.trigram_input = config.trigram_input
        self.word_embeddings = nn.Embedding(config.vocab_size, E, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(P, H)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, H)
        # Without trigrams and with E = H it is not used, but checkpoints have it.
        self.embedding_transformation = Linear(E * (3 if self.trigram_input else 1), H)
        self.unused = () if self.trigram_input or E != H else ("embedding_transformation",)
        # Not layer_norm_eps: checkpoints were trained with the default.
        self.LayerNorm = make_norm(config, H)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """With `real`, bool [B, T], padding is to tokens beside it, and to their positions, as if it were not there."""
        words = wide_enough(self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds)
        if real is not None:
            words = words.masked_fill(~real[..., None], 0)
            position_ids = count_tokens(real) if position_ids is None else position_ids
        if self.trigram_input:
            padded = F.pad(words, (0, 0, 1, 1))
            words = torch.cat([padded[:, 2:], words, padded[:, :-2]], dim=2)
        if self.trigram_input or words.shape[2] != self.position_embeddings.embedding_dim:
            words = self.embedding_transformation(words)
        # What is the same for every sequence is looked up and added once, not once a sequence.
        positions = torch.arange(words.shape[1], device=words.device)[None] if position_ids is None else position_ids
        types = torch.zeros_like(positions[..., :1]) if token_type_ids is None else token_type_ids
        h = words + (self.token_type_embeddings(types) + self.position_embeddings(positions))
        return self.dropout(self.LayerNorm(h))


class MobileBertEncoder(HasParts, nn.Module):
    """As a rule, in inference on the CPU, all layers are one native call; else they are called one by one."""

    plain = MobileBertLayer.plain | {MobileBertLayer}

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList([MobileBertLayer(config) for _ in range(config.num_hidden_layers)])

    def layers_with_parts(self) -> list[Any]:
        return list(self.layer)

    def forward(
        self,
        h: Tensor,
        mask: Mask,
        head_masks: list[Tensor | None],
        rng_state: Tensor | None,
        states: list[Tensor] | None,
        attentions: list[Tensor] | None,
    ) -> Tensor:
        """The last hidden state. `states` gets all of them, the embeddings' first, and `attentions` each layer's
        probabilities, where they are lists."""
        if rng_state is None and states is None and attentions is None:
            together = all_layers(self, h, mask, head_masks)
            if together is not None:
                return together
        if states is not None:
            states.append(h)
        for i, (layer, head_mask) in enumerate(zip(self.layer, head_masks, strict=True)):
            layer_state = None if rng_state is None else _dropout.at(rng_state, i, 0)
            h, probabilities = layer(h, mask, head_mask, layer_state, attentions is not None)
            if states is not None:
                states.append(h)
            if attentions is not None:
                attentions.append(probabilities)
        return h


class MobileBertPooler(nn.Module):
    """tanh(dense(h of the first token)), or that h itself without `classifier_activation`: [B, T, H] -> [B, H]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size) if config.classifier_activation else None

    def forward(self, h: Tensor) -> Tensor:
        return h[:, 0] if self.dense is None else torch.tanh(self.dense(h[:, 0]))


# ---- models ---------------------------------------------------------------------------------------------------------


class MobileBertPreTrainedModel(LoadsOtherFrameworks, NamesUnusedParameters, PrunesHeads, PreTrainedModel):
    """Base of all MobileBERT models: initialization, and the kinds of attention that they can run on."""

    config: MobileBertConfig
    config_class = MobileBertConfig
    base_model_prefix = "mobilebert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["MobileBertEmbeddings", "MobileBertLayer"]  # noqa: RUF012  transformers wants a list
    # A buffer of older checkpoints: 0, 1, 2, ...
    _keys_to_ignore_on_load_unexpected = [r"embeddings\.position_ids$"]  # noqa: RUF012

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NoNorm):
            initialization.zeros_(module.bias)
            initialization.ones_(module.weight)
        elif isinstance(module, MobileBertLanguageHead):
            initialization.zeros_(module.bias)


class MobileBertModel(MobileBertPreTrainedModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`."""

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = MobileBertEmbeddings(config)
        self.encoder = MobileBertEncoder(config)
        self.pooler = MobileBertPooler(config) if add_pooling_layer else None
        self.post_init()
        self.prune_as_configured()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode a batch of sequences.

        Args:
            input_ids: [B, T], or else
            inputs_embeds: [B, T, E], in place of the word embeddings.
            attention_mask: [B, T], 0 where a token is padding; [B, T, T], 0 where a token is hidden from another; or
                [B, heads or 1, T, T], likewise, or in floating point added to the scores.
            token_type_ids: [B, T]; zeros where it is not given.
            position_ids: [B, T] or [T]; 0 to T - 1 where it is not given, and T is at most max_position_embeddings.
            head_mask: [heads] or [layers, heads], a factor for each head's attention probabilities.
            output_attentions, output_hidden_states, return_dict: as the configuration says where they are not given.
            keep_padding: whether padded tokens go through the layers too, see `padding`. They do anyhow where one of
                the first two before is asked for.

        Returns: last_hidden_state [B, T, H], on the CPU zeros for padded tokens unless they are kept, pooler_output [B,
        H] or None, and what was asked for of hidden_states (layers + 1 times [B, T, H]) and attentions (for each layer
        [B, heads, T, T]). Without `return_dict` the same as a tuple.

        Raises: ValueError for inputs of the wrong shape, both or neither of input_ids and inputs_embeds, too long
        sequences; TypeError for ids that are not integers and for unknown keywords.
        """
        options = _options(self, kwargs)
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        longest = self.config.max_position_embeddings if position_ids is None else None
        check_tokens(given, token_type_ids, position_ids, self.config.embedding_size, longest)
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        _, tokens = one_of(given)
        mask = make_mask(attention_mask, tokens, tokens.shape[1])
        real = real_tokens(mask, tokens) if getattr(self.config, "exact_padding", False) else None
        h = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, real)
        drops = self.training and (self.config.hidden_dropout_prob or self.config.attention_probs_dropout_prob)
        states: list[Tensor] | None = [] if options["output_hidden_states"] else None
        attentions: list[Tensor] | None = [] if options["output_attentions"] else None
        keep = options["keep_padding"] or states is not None or attentions is not None
        left = removable(self, mask, h, keep=keep)
        if left is not None:
            h, mask = left.take(h), mask._replace(real=left)
        h = self.encoder(
            h,
            mask,
            head_masks(options["head_mask"], layers, heads, h.dtype),
            _dropout.draw(h.device) if drops else None,
            states,
            attentions,
        )
        if left is not None:
            h = left.put_back(h)
        output = BaseModelOutputWithPooling(
            last_hidden_state=h,
            pooler_output=None if self.pooler is None else self.pooler(first_tokens(h, real)),
            hidden_states=None if states is None else tuple(states),
            attentions=None if attentions is None else tuple(attentions),
        )
        return output if options["return_dict"] else output.to_tuple()


def _options(model: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """The arguments that transformers has no names for in `forward`; what is not given is as the configuration says.
    Raises TypeError for a keyword that is none of them."""
    names = ("head_mask", "keep_padding", "output_attentions", "output_hidden_states", "return_dict")
    options: dict[str, Any] = dict.fromkeys(names)
    for name, value in keywords.items():
        if name in options:
            options[name] = value
        elif name != "num_items_in_batch":  # Trainer's
            raise TypeError(f"{type(model).__name__} has no argument {name!r}")
    configured = {name: getattr(model.config, name, None) for name, value in options.items() if value is None}
    return options | configured


# ---- heads: MobileBERT's order of arguments, then one class per task -------------------------------------------------


class MobileBertHead(tasks.Family, MobileBertPreTrainedModel):
    """What the tasks need to know of MobileBERT."""

    backbone = MobileBertModel
    always_pools = False
    linear = Linear
    language_head = MobileBertLanguageHead
    language_head_path = "cls.predictions"
    pretraining_output = MobileBertForPreTrainingOutput
    masked_loss_alone = False


def _inputs(
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    keywords: dict[str, Any],
) -> dict[str, Any]:
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "inputs_embeds": inputs_embeds,
        **keywords,
    }


class _Labelled(tasks.Task):
    """MobileBERT's order of arguments for the heads with one kind of labels."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As MobileBertModel's; the class says what `labels` are. Without them there is no loss."""
        return_dict = kwargs.pop("return_dict", None)
        inputs = _inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, kwargs)
        return self.deliver(self.answer(inputs, labels), return_dict)


class _WithDense(tasks.LanguageModel):
    """A language model whose head has, beside the decoder, a `dense` with a column for each word."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As transformers', for both halves of the head."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.language.dense = self._get_resized_lm_head(
            self.language.dense, embeddings.weight.shape[0], transposed=True, mean_resizing=mean_resizing
        )
        return embeddings


class MobileBertForPreTraining(_WithDense, tasks.PreTraining, MobileBertHead):
    """Masked language model and next sentence prediction: the heads that MobileBERT was trained with.

    labels [B, T] and next_sentence_label [B] are those of MobileBertForMaskedLM and
    MobileBertForNextSentencePrediction. The loss, the sum of both, needs both. Returns MobileBertForPreTrainingOutput
    with prediction_logits [B, T, V] and seq_relationship_logits [B, 2].
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
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As MobileBertModel's, and the labels that the class describes."""
        return_dict = kwargs.pop("return_dict", None)
        inputs = _inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, kwargs)
        return self.deliver(self.answer(inputs, labels, next_sentence_label), return_dict)


class MobileBertForMaskedLM(_WithDense, _Labelled, tasks.MaskedLM, MobileBertHead):
    """Masked language model: logits [B, T, V]. labels [B, T] are token ids, and -100 where a token does not count."""


class MobileBertForNextSentencePrediction(tasks.NextSentencePrediction, MobileBertHead):
    """Does the second sentence follow the first? logits [B, 2]. labels [B]: 0 if it does, 1 if it is a random one."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As MobileBertModel's, and the labels that the class describes; `next_sentence_label` is their old name."""
        if "next_sentence_label" in kwargs:
            warnings.warn("next_sentence_label is deprecated: it is called labels", FutureWarning, stacklevel=2)
            old = kwargs.pop("next_sentence_label")
            labels = old if labels is None else labels
        return_dict = kwargs.pop("return_dict", None)
        inputs = _inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, kwargs)
        return self.deliver(self.answer(inputs, labels), return_dict)


class MobileBertForSequenceClassification(_Labelled, tasks.SequenceClassification, MobileBertHead):
    """Classes or values of a whole sequence: logits [B, num_labels].

    labels are class ids [B] ("single_label_classification"), zeros and ones [B, num_labels]
    ("multi_label_classification") or values [B], with more than one label [B, num_labels] ("regression"). Which of the
    three is `config.problem_type`; where that is None, num_labels = 1 means regression and the dtype of the first
    labels decides otherwise, for good.
    """


class MobileBertForMultipleChoice(_Labelled, tasks.MultipleChoice, MobileBertHead):
    """Which of several continuations is right? logits [B, choices].

    The inputs have one dimension more than MobileBertModel's: input_ids are [B, choices, T]. labels [B] are the right
    ones.
    """


class MobileBertForTokenClassification(_Labelled, tasks.TokenClassification, MobileBertHead):
    """Classes of tokens: logits [B, T, num_labels]. labels [B, T] are class ids, -100 where a token does not count."""


class MobileBertForQuestionAnswering(tasks.QuestionAnswering, MobileBertHead):
    """Where in the text is the answer? start_logits and end_logits [B, T].

    start_positions and end_positions [B] are the answer's first and last token; the loss needs both, and a position
    behind the last token does not count.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As MobileBertModel's, and the positions that the class describes."""
        return_dict = kwargs.pop("return_dict", None)
        inputs = _inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, kwargs)
        return self.deliver(self.answer(inputs, start_positions, end_positions), return_dict)
