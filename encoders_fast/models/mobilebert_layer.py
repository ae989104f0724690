"""One layer of MobileBERT, with the parameter names that checkpoints have.

As a rule it is three calls: the op bottleneck_input, attention, and the op bottleneck_ffn. Where something stands in
its way, an adapter in place of a Linear, a hook, an activation function that the ops do not have, it is composed of
its modules.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .. import _dropout
from ..ops.bottleneck.op import packed_ffn, packed_input
from .activations import activation
from .attention import attend
from .masks import Mask
from .mobilebert_parts import HasParts
from .wide import LayerNorm, Linear, NoNorm, without_float16


def make_norm(config: Any, width: int, eps: float = 1e-5) -> nn.Module:
    kind = config.normalization_type
    if kind not in ("no_norm", "layer_norm"):
        raise ValueError(f'normalization_type must be "no_norm" or "layer_norm"; it is {kind!r}')
    return NoNorm(width) if kind == "no_norm" else LayerNorm(width, eps=eps)


# ---- in front of the attention --------------------------------------------------------------------------------------


class BottleneckLayer(nn.Module):
    """N(W h + b): [B, T, H] -> [B, T, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intra_bottleneck_size)
        self.LayerNorm = make_norm(config, config.intra_bottleneck_size, config.layer_norm_eps)

    def forward(self, h: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(h))


class Bottleneck(nn.Module):
    """What query and key, value, and the narrow stream are made of."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.key_query_shared_bottleneck = config.key_query_shared_bottleneck
        self.use_bottleneck_attention = config.use_bottleneck_attention
        self.input = BottleneckLayer(config)
        if self.key_query_shared_bottleneck:  # with use_bottleneck_attention it has no effect
            self.attention = BottleneckLayer(config)
            self.unused = ("attention",) if self.use_bottleneck_attention else ()

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u0 = self.input(h)
        if self.use_bottleneck_attention:
            return u0, u0, u0
        return self.attention(h) if self.key_query_shared_bottleneck else h, h, u0


# ---- attention ------------------------------------------------------------------------------------------------------


class MobileBertSelfAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        H, D = config.num_attention_heads, config.true_hidden_size
        if D % H:
            raise ValueError(f"the attention's width, {D}, must be a multiple of num_attention_heads, {H}")
        self.config = config
        self.attention_head_size = D // H
        self.scaling = self.attention_head_size**-0.5
        wide_query = config.use_bottleneck and not config.use_bottleneck_attention
        wide_query = wide_query and not config.key_query_shared_bottleneck
        query_width = config.hidden_size if wide_query else D
        self.query = Linear(query_width, D)
        self.key = Linear(query_width, D)
        self.value = Linear(D if config.use_bottleneck_attention else config.hidden_size, D)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.is_causal = False
        self.kept_heads = list(range(H))

    def forward(self, query_tensor: Tensor, value_tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.query(query_tensor), self.key(query_tensor), self.value(value_tensor)
        return self.attend(q, k, v, *rest)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        head_mask: Tensor | None,
        rng_state: Tensor | None,
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The context [B, T, H * K] of q, k, v, and the probabilities [B, H, T, T] if they are asked for."""
        q, k, v = (t.unflatten(-1, (len(self.kept_heads), -1)).transpose(1, 2) for t in (q, k, v))
        if head_mask is not None and len(self.kept_heads) < len(head_mask):
            head_mask = head_mask[self.kept_heads]
        with without_float16(q):
            return attend(
                self,
                q,
                k,
                v,
                mask,
                scale=self.scaling,
                dropout_p=self.dropout.p,
                head_mask=head_mask,
                rng_state=None if rng_state is None else _dropout.at(rng_state, 0, 0),
                output_attentions=output_attentions,
            )


class MobileBertSelfOutput(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Linear(config.true_hidden_size, config.true_hidden_size)
        self.LayerNorm = make_norm(config, config.true_hidden_size, config.layer_norm_eps)
        self.dropout = None if config.use_bottleneck else nn.Dropout(config.hidden_dropout_prob)

    def forward(self, context: Tensor, u0: Tensor) -> Tensor:
        x = self.dense(context)
        return self.LayerNorm((x if self.dropout is None else self.dropout(x)) + u0)


class MobileBertAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self = MobileBertSelfAttention(config)
        self.output = MobileBertSelfOutput(config)

    def forward(
        self, query_tensor: Tensor, value_tensor: Tensor, u0: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor | None]:
        context, probabilities = self.self(query_tensor, value_tensor, *rest)
        return self.output(context, u0), probabilities


# ---- behind the attention -------------------------------------------------------------------------------------------


class MobileBertIntermediate(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Linear(config.true_hidden_size, config.intermediate_size)
        self.intermediate_act_fn = activation(config.hidden_act)

    def forward(self, u: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(u))


class FFNOutput(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Linear(config.intermediate_size, config.true_hidden_size)
        self.LayerNorm = make_norm(config, config.true_hidden_size, config.layer_norm_eps)

    def forward(self, hidden: Tensor, u: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(hidden) + u)


class FFNLayer(nn.Module):
    """One of the feed-forward blocks in front of the last one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.intermediate = MobileBertIntermediate(config)
        self.output = FFNOutput(config)

    def forward(self, u: Tensor) -> Tensor:
        return self.output(self.intermediate(u), u)


class OutputBottleneck(nn.Module):
    """N(dropout(W u + b) + h): back to the wide stream."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Linear(config.true_hidden_size, config.hidden_size)
        self.LayerNorm = make_norm(config, config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, u: Tensor, h: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(u)) + h)


class MobileBertOutput(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Linear(config.intermediate_size, config.true_hidden_size)
        # Not layer_norm_eps: checkpoints were trained with this one.
        self.LayerNorm = make_norm(config, config.true_hidden_size)
        self.dropout = self.bottleneck = None
        if config.use_bottleneck:
            self.bottleneck = OutputBottleneck(config)
        else:
            self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, u: Tensor, h: Tensor) -> Tensor:
        x = self.dense(hidden)
        u = self.LayerNorm((x if self.dropout is None else self.dropout(x)) + u)
        return u if self.bottleneck is None else self.bottleneck(u, h)


# ---- the layer ------------------------------------------------------------------------------------------------------


class MobileBertLayer(HasParts, GradientCheckpointingLayer):
    """[B, T, H] -> [B, T, H], and the attention's probabilities or None."""

    plain = frozenset(
        {
            Bottleneck,
            BottleneckLayer,
            FFNLayer,
            FFNOutput,
            LayerNorm,
            Linear,
            MobileBertAttention,
            MobileBertIntermediate,
            MobileBertOutput,
            MobileBertSelfAttention,
            MobileBertSelfOutput,
            NoNorm,
            OutputBottleneck,
        }
    )

    def __init__(self, config: Any) -> None:
        super().__init__()
        if config.num_feedforward_networks < 1:
            raise ValueError(f"num_feedforward_networks must be at least 1; it is {config.num_feedforward_networks}")
        self.attention = MobileBertAttention(config)
        self.intermediate = MobileBertIntermediate(config)
        self.output = MobileBertOutput(config)
        self.bottleneck = Bottleneck(config) if config.use_bottleneck else None
        blocks = range(config.num_feedforward_networks - 1)
        if blocks:  # an empty list would be seen in the repr only, but there it would be new
            self.ffn = nn.ModuleList([FFNLayer(config) for _ in blocks])

    def forward(
        self,
        h: Tensor,
        mask: Mask,
        head_mask: Tensor | None = None,
        rng_state: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """rng_state, int64 [2], is the layer's: what it drops. None where it drops nothing."""
        rest = (mask, head_mask, rng_state, output_attentions)
        parts = self.parts()
        parameters = parts.parameters()
        if parameters is None:
            return self.composed(h, *rest)
        own: Any = self.attention.self
        q, k, v, u0 = packed_input(h, parameters[0], parts.from_bottleneck)
        context, probabilities = own.attend(q, k, v, *rest)
        dropout_p = parts.dropout.p if parts.dropout.training else 0.0
        if dropout_p > 0 and rng_state is None:
            rng_state = _dropout.draw(h.device)
        stream = None if self.bottleneck is None else h
        h = packed_ffn(context, u0, stream, parameters[1], parts.activation, dropout_p, rng_state)
        return h, probabilities

    def composed(self, h: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None]:
        query_tensor, value_tensor, u0 = (h, h, h) if self.bottleneck is None else self.bottleneck(h)
        u, probabilities = self.attention(query_tensor, value_tensor, u0, *rest)
        for block in self.blocks()[:-1]:
            u = block(u)
        return self.output(self.intermediate(u), u, h), probabilities
