"""RoBERTa-PreLayerNorm: what takes the place of transformers' modules."""

from __future__ import annotations

from torch import nn
from transformers.models.roberta_prelayernorm import modeling_roberta_prelayernorm as stock

from . import pre_layer_norm


class RobertaPreLayerNormLayer(pre_layer_norm.Layer, stock.RobertaPreLayerNormLayer):
    norm_name = "LayerNorm"
    feed_forward_norm_name = "intermediate.LayerNorm"
    types = {  # noqa: RUF012  declared so in the base
        "attention": stock.RobertaPreLayerNormAttention,
        "attention.output": stock.RobertaPreLayerNormSelfOutput,
        "attention.output.dropout": nn.Dropout,
        "crossattention": stock.RobertaPreLayerNormAttention,
        "crossattention.LayerNorm": nn.LayerNorm,
        "crossattention.output": stock.RobertaPreLayerNormSelfOutput,
        "crossattention.output.dropout": nn.Dropout,
        "intermediate": stock.RobertaPreLayerNormIntermediate,
        "output": stock.RobertaPreLayerNormOutput,
        "output.dropout": nn.Dropout,
    }


class RobertaPreLayerNormSelfAttention(pre_layer_norm.SelfAttention, stock.RobertaPreLayerNormSelfAttention):
    eager = staticmethod(stock.eager_attention_forward)


class RobertaPreLayerNormEncoder(pre_layer_norm.Encoder, stock.RobertaPreLayerNormEncoder):
    pass


REPLACEMENTS = (RobertaPreLayerNormEncoder, RobertaPreLayerNormLayer, RobertaPreLayerNormSelfAttention)
