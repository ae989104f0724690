"""RoBERTa-PreLayerNorm: RoBERTa with the LayerNorm before each sublayer in place of behind it; and its heads.

    h = h + dropout(Wo attention(LayerNorm(h)))
    h = h + dropout(W2 act(W1 LayerNorm(h) + b1) + b2)

Class names, parameter names, argument order and outputs are those of transformers' modeling_roberta_prelayernorm.py.

Source: fairseq: A Fast, Extensible Toolkit for Sequence Modeling (Ott et al., 2019), --encoder-normalize-before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.generation import GenerationMixin

from . import tasks
from .activations import activation
from .arguments import CausalArguments, ChoiceArguments, LabelArguments, MaskedArguments, SpanArguments
from .configuration import RobertaPreLayerNormConfig
from .language_heads import RobertaLanguageHead
from .other_frameworks.loading import LoadsOtherFrameworks
from .pre_layer_norm import PreLayerNormAttention, PreLayerNormEncoder, PreLayerNormLayer
from .projections import activate, project
from .roberta import RobertaEmbeddings, RobertaEncoderModel, RobertaPooler, RobertaPreTrainedModel

__all__ = [
    "RobertaPreLayerNormConfig",
    "RobertaPreLayerNormForCausalLM",
    "RobertaPreLayerNormForMaskedLM",
    "RobertaPreLayerNormForMultipleChoice",
    "RobertaPreLayerNormForQuestionAnswering",
    "RobertaPreLayerNormForSequenceClassification",
    "RobertaPreLayerNormForTokenClassification",
    "RobertaPreLayerNormModel",
    "RobertaPreLayerNormPreTrainedModel",
]


# ---- the encoder's parts --------------------------------------------------------------------------------------------


class RobertaPreLayerNormEmbeddings(RobertaEmbeddings):
    """Words, positions and token types, normalized: the layers normalize them again."""

    has_layer_norm = True


class RobertaPreLayerNormAttention(PreLayerNormAttention):
    norm_name = "LayerNorm"


class RobertaPreLayerNormIntermediate(nn.Module):
    """act(dense(LayerNorm(h))): [B, T, D] -> [B, T, F]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = activation(config.hidden_act)

    def forward(self, h: Tensor) -> Tensor:
        return activate(self.intermediate_act_fn, self.dense, self.LayerNorm(h))


class RobertaPreLayerNormOutput(nn.Module):
    """residual + dropout(dense(x)): [B, T, F] -> [B, T, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self.dropout(project(self.dense, x))


class RobertaPreLayerNormLayer(PreLayerNormLayer):
    attention_class = RobertaPreLayerNormAttention

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.intermediate = RobertaPreLayerNormIntermediate(config)
        self.output = RobertaPreLayerNormOutput(config)

    @property
    def feed_forward_norm(self) -> nn.Module:
        return self.intermediate.LayerNorm

    def feed_forward(self, h: Tensor) -> Tensor:
        return self.output(self.intermediate(h), h)


class RobertaPreLayerNormEncoder(PreLayerNormEncoder):
    layer_class = RobertaPreLayerNormLayer


# ---- models ---------------------------------------------------------------------------------------------------------


class RobertaPreLayerNormPreTrainedModel(LoadsOtherFrameworks, RobertaPreTrainedModel):
    """Base of all RoBERTa-PreLayerNorm models: initialization, and how checkpoints are loaded and saved."""

    config: RobertaPreLayerNormConfig
    config_class = RobertaPreLayerNormConfig
    base_model_prefix = "roberta_prelayernorm"
    _no_split_modules = ["RobertaPreLayerNormEmbeddings", "RobertaPreLayerNormLayer"]  # noqa: RUF012  transformers wants a list


class RobertaPreLayerNormModel(RobertaEncoderModel, RobertaPreLayerNormPreTrainedModel):
    """The encoder, or decoder, with a pooler unless `add_pooling_layer=False`."""

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = RobertaPreLayerNormEmbeddings(config)
        self.encoder = RobertaPreLayerNormEncoder(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = RobertaPooler(config) if add_pooling_layer else None
        self.prune_as_configured()
        self.post_init()

    @property
    def final_norm(self) -> nn.Module:
        return self.LayerNorm


# ---- heads ----------------------------------------------------------------------------------------------------------


class RobertaPreLayerNormHead(tasks.Family, RobertaPreLayerNormPreTrainedModel):
    """What the tasks need to know of RoBERTa-PreLayerNorm."""

    backbone = RobertaPreLayerNormModel
    always_pools = False
    language_head = RobertaLanguageHead
    language_head_path = "lm_head"


class RobertaPreLayerNormForCausalLM(CausalArguments, RobertaPreLayerNormHead, GenerationMixin):
    """Causal language model, for `generate`: logits [B, T, V] of the token behind each token.

    It is causal where `config.is_decoder` is True. labels [B, T] are the tokens themselves, and -100 where one does not
    count; the loss compares each with the logits before it.
    """


class RobertaPreLayerNormForMaskedLM(MaskedArguments, tasks.MaskedLM, RobertaPreLayerNormHead):
    """Masked language model: logits [B, T, V]. labels [B, T] are token ids, and -100 where a token does not count."""


class RobertaPreLayerNormForSequenceClassification(
    LabelArguments, tasks.FirstTokenClassification, RobertaPreLayerNormHead
):
    """Classes or values of a whole sequence: logits [B, num_labels].

    labels are class ids [B] ("single_label_classification"), zeros and ones [B, num_labels]
    ("multi_label_classification") or values [B], with more than one label [B, num_labels] ("regression"). Which of the
    three is `config.problem_type`; where that is None, num_labels = 1 means regression and the dtype of the first
    labels decides otherwise, for good.
    """


class RobertaPreLayerNormForMultipleChoice(ChoiceArguments, tasks.MultipleChoice, RobertaPreLayerNormHead):
    """Which of several continuations is right? logits [B, choices].

    The inputs have one dimension more than the backbone's: input_ids are [B, choices, T]. labels [B] are the right
    ones.
    """


class RobertaPreLayerNormForTokenClassification(LabelArguments, tasks.TokenClassification, RobertaPreLayerNormHead):
    """Classes of tokens: logits [B, T, num_labels]. labels [B, T] are class ids, -100 where a token does not count."""


class RobertaPreLayerNormForQuestionAnswering(SpanArguments, tasks.QuestionAnswering, RobertaPreLayerNormHead):
    """Where in the text is the answer? start_logits and end_logits [B, T].

    start_positions and end_positions [B] are the answer's first and last token; the loss needs both, and a position
    behind the last token does not count.
    """
