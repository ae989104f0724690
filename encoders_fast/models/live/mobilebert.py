"""MobileBERT: what takes the place of transformers' modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mobilebert import modeling_mobilebert as stock

from ... import _dropout
from ...ops.bottleneck.op import packed_ffn, packed_input
from ..language_heads import MobileBertLanguageHead
from ..masks import EVERYTHING
from ..mobilebert_parts import HasParts
from ..mobilebert_stack import all_layers
from .attention import attention_function
from .replacement import Replacement


class MobileBertLayer(HasParts, Replacement, stock.MobileBertLayer):
    """Two ops, and between them the attention that the configuration names."""

    work = "bottleneck_input and bottleneck_ffn"
    kept = ("_parts",)
    plain = frozenset(
        {
            stock.Bottleneck,
            stock.BottleneckLayer,
            stock.FFNLayer,
            stock.FFNOutput,
            stock.MobileBertAttention,
            stock.MobileBertIntermediate,
            stock.MobileBertOutput,
            stock.MobileBertSelfAttention,
            stock.MobileBertSelfOutput,
            stock.NoNorm,
            stock.OutputBottleneck,
        }
    )

    def obstacle(self) -> str | None:
        return self.parts().obstacle()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        parts = self.parts()
        parameters = parts.parameters()
        if parameters is None or hidden_states.dim() != 3:
            return super().forward(hidden_states, attention_mask, **kwargs)
        own = self.attention.self
        *qkv, u0 = packed_input(hidden_states, parameters[0], parts.from_bottleneck)
        query, key, value = (t.unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2) for t in qkv)
        dropout_p = own.dropout.p if own.training else 0.0
        attend = attention_function(own.config._attn_implementation, stock.eager_attention_forward)
        context, _ = attend(own, query, key, value, attention_mask, dropout=dropout_p, scaling=own.scaling, **kwargs)
        stream = hidden_states if self.use_bottleneck else None
        dropout_p = parts.dropout.p if parts.dropout.training else 0.0
        rng_state = _dropout.draw(hidden_states.device) if dropout_p > 0 else None
        return packed_ffn(context.flatten(2), u0, stream, parameters[1], parts.activation, dropout_p, rng_state)


class MobileBertEncoder(HasParts, Replacement, stock.MobileBertEncoder):
    """All layers in one call where nothing is padded and nobody looks between them."""

    work = "one native call for all layers, in inference on the CPU without padding"
    whole = False
    kept = ("_parts",)
    plain = MobileBertLayer.plain | {MobileBertLayer}

    def layers_with_parts(self) -> list[Any]:
        return list(self.layer)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is None and not kwargs and ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward:
            h = all_layers(self, hidden_states, EVERYTHING, [None] * len(self.layer))
            if h is not None:
                return BaseModelOutput(last_hidden_state=h)
        return super().forward(hidden_states, attention_mask, **kwargs)


class MobileBertLMPredictionHead(Replacement, stock.MobileBertLMPredictionHead):
    """Two products in place of one with a matrix [H, V] that is put together for every call."""

    work = "two products, without a copy of the word embeddings"

    def bypassed(self) -> dict[str, type[nn.Module]]:
        return {"dense": nn.Linear}

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.obstacle() is not None:
            return super().forward(hidden_states)
        return MobileBertLanguageHead.forward(self, hidden_states)  # type: ignore[arg-type]


REPLACEMENTS = (MobileBertEncoder, MobileBertLayer, MobileBertLMPredictionHead)
