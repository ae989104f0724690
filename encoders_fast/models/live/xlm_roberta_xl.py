"""XLM-RoBERTa-XL: what takes the place of transformers' modules."""

from __future__ import annotations

from torch import nn
from transformers.models.xlm_roberta_xl import modeling_xlm_roberta_xl as stock

from . import pre_layer_norm


class XLMRobertaXLLayer(pre_layer_norm.Layer, stock.XLMRobertaXLLayer):
    norm_name = "self_attn_layer_norm"
    feed_forward_norm_name = "LayerNorm"
    types = {  # noqa: RUF012  declared so in the base
        "attention": stock.XLMRobertaXLAttention,
        "attention.output": stock.XLMRobertaXLSelfOutput,
        "attention.output.dropout": nn.Dropout,
        "crossattention": stock.XLMRobertaXLAttention,
        "crossattention.self_attn_layer_norm": nn.LayerNorm,
        "crossattention.output": stock.XLMRobertaXLSelfOutput,
        "crossattention.output.dropout": nn.Dropout,
        "intermediate": stock.XLMRobertaXLIntermediate,
        "output": stock.XLMRobertaXLOutput,
    }


class XLMRobertaXLSelfAttention(pre_layer_norm.SelfAttention, stock.XLMRobertaXLSelfAttention):
    eager = staticmethod(stock.eager_attention_forward)


class XLMRobertaXLEncoder(pre_layer_norm.Encoder, stock.XLMRobertaXLEncoder):
    pass


REPLACEMENTS = (XLMRobertaXLEncoder, XLMRobertaXLLayer, XLMRobertaXLSelfAttention)
