"""XLM-RoBERTa-XL: XLM-RoBERTa with 3.5 or 10.7 billion parameters and the LayerNorm before each sublayer; and heads.

    h = h + dropout(Wo attention(LayerNorm(h)))
    h = h + W2 act(W1 LayerNorm(h) + b1) + b2

Class names, parameter names, argument order and outputs are those of transformers' modeling_xlm_roberta_xl.py.

Source: Larger-Scale Transformers for Multilingual Masked Language Modeling (Goyal et al., 2021).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.generation import GenerationMixin

from . import tasks
from .activations import activation
from .arguments import CausalArguments, ChoiceArguments, LabelArguments, MaskedArguments, SpanArguments
from .configuration import XLMRobertaXLConfig
from .language_heads import RobertaLanguageHead
from .pre_layer_norm import PreLayerNormAttention, PreLayerNormEncoder, PreLayerNormLayer
from .projections import activate, project
from .roberta import RobertaEmbeddings, RobertaEncoderModel, RobertaPooler, RobertaPreTrainedModel

__all__ = [
    "XLMRobertaXLConfig",
    "XLMRobertaXLForCausalLM",
    "XLMRobertaXLForMaskedLM",
    "XLMRobertaXLForMultipleChoice",
    "XLMRobertaXLForQuestionAnswering",
    "XLMRobertaXLForSequenceClassification",
    "XLMRobertaXLForTokenClassification",
    "XLMRobertaXLModel",
    "XLMRobertaXLPreTrainedModel",
]


# ---- the encoder's parts --------------------------------------------------------------------------------------------


class XLMRobertaXLEmbeddings(RobertaEmbeddings):
    """Words, positions and token types, as they are."""

    has_layer_norm = False


class XLMRobertaXLAttention(PreLayerNormAttention):
    norm_name = "self_attn_layer_norm"


class XLMRobertaXLIntermediate(nn.Module):
    """act(dense(h)): [B, T, D] -> [B, T, F]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = activation(config.hidden_act)

    def forward(self, h: Tensor) -> Tensor:
        return activate(self.intermediate_act_fn, self.dense, h)


class XLMRobertaXLOutput(nn.Module):
    """residual + dense(x), or with `feed_forward_dropout` + dropout(dense(x)): [B, T, F] -> [B, T, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        drops = getattr(config, "feed_forward_dropout", False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob) if drops else None

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = project(self.dense, x)
        return residual + (x if self.dropout is None else self.dropout(x))


class XLMRobertaXLLayer(PreLayerNormLayer):
    attention_class = XLMRobertaXLAttention

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.intermediate = XLMRobertaXLIntermediate(config)
        self.output = XLMRobertaXLOutput(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @property
    def feed_forward_norm(self) -> nn.Module:
        return self.LayerNorm

    def feed_forward(self, h: Tensor) -> Tensor:
        return self.output(self.intermediate(self.LayerNorm(h)), h)


class XLMRobertaXLEncoder(PreLayerNormEncoder):
    layer_class = XLMRobertaXLLayer

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


# ---- models ---------------------------------------------------------------------------------------------------------


class XLMRobertaXLPreTrainedModel(RobertaPreTrainedModel):
    """Base of all XLM-RoBERTa-XL models: initialization, and how checkpoints are loaded and saved."""

    config: XLMRobertaXLConfig
    config_class = XLMRobertaXLConfig
    base_model_prefix = "roberta"
    _no_split_modules = ["XLMRobertaXLEmbeddings", "XLMRobertaXLLayer"]  # noqa: RUF012  transformers wants a list


class XLMRobertaXLModel(RobertaEncoderModel, XLMRobertaXLPreTrainedModel):
    """The encoder, or decoder, with a pooler unless `add_pooling_layer=False`."""

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = XLMRobertaXLEmbeddings(config)
        self.encoder = XLMRobertaXLEncoder(config)
        self.pooler = RobertaPooler(config) if add_pooling_layer else None
        self.prune_as_configured()
        self.post_init()

    @property
    def final_norm(self) -> nn.Module:
        return self.encoder.LayerNorm


# ---- heads ----------------------------------------------------------------------------------------------------------


class XLMRobertaXLHead(tasks.Family, XLMRobertaXLPreTrainedModel):
    """What the tasks need to know of XLM-RoBERTa-XL."""

    backbone = XLMRobertaXLModel
    always_pools = False
    language_head = RobertaLanguageHead
    language_head_path = "lm_head"
    token_loss_skips_padding = True


class XLMRobertaXLForCausalLM(CausalArguments, XLMRobertaXLHead, GenerationMixin):
    """Causal language model, for `generate`: logits [B, T, V] of the token behind each token.

    It is causal where `config.is_decoder` is True. labels [B, T] are the tokens themselves, and -100 where one does not
    count; the loss compares each with the logits before it.
    """


class XLMRobertaXLForMaskedLM(MaskedArguments, tasks.MaskedLM, XLMRobertaXLHead):
    """Masked language model: logits [B, T, V]. labels [B, T] are token ids, and -100 where a token does not count."""


class XLMRobertaXLForSequenceClassification(LabelArguments, tasks.FirstTokenClassification, XLMRobertaXLHead):
    """Classes or values of a whole sequence: logits [B, num_labels].

    labels are class ids [B] ("single_label_classification"), zeros and ones [B, num_labels]
    ("multi_label_classification") or values [B], with more than one label [B, num_labels] ("regression"). Which of the
    three is `config.problem_type`; where that is None, num_labels = 1 means regression and the dtype of the first
    labels decides otherwise, for good.
    """


class XLMRobertaXLForMultipleChoice(ChoiceArguments, tasks.MultipleChoice, XLMRobertaXLHead):
    """Which of several continuations is right? logits [B, choices].

    The inputs have one dimension more than the backbone's: input_ids are [B, choices, T]. labels [B] are the right
    ones.
    """


class XLMRobertaXLForTokenClassification(LabelArguments, tasks.TokenClassification, XLMRobertaXLHead):
    """Classes of tokens: logits [B, T, num_labels]. labels [B, T] are class ids, -100 where a token does not count, nor
    does one that attention_mask hides."""


class XLMRobertaXLForQuestionAnswering(SpanArguments, tasks.QuestionAnswering, XLMRobertaXLHead):
    """Where in the text is the answer? start_logits and end_logits [B, T].

    start_positions and end_positions [B] are the answer's first and last token; the loss needs both, and a position
    behind the last token does not count.
    """
