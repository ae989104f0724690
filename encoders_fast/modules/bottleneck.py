"""The ops `bottleneck_input` and `bottleneck_ffn` as nn.Modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _dropout
from ..ops import NormedProjection, Projection, bottleneck_ffn, bottleneck_input
from ..ops.bottleneck.checks import check_activation, check_eps


class _Normed(nn.Linear):
    """N(W x + b) and its parameters: those of an nn.Linear, and norm_weight and norm_bias, [out_features]."""

    def __init__(self, in_features: int, out_features: int, eps: float | None, **factory: Any) -> None:
        super().__init__(in_features, out_features, **factory)
        self.eps = eps
        self.norm_weight = nn.Parameter(torch.ones(out_features, **factory))
        self.norm_bias = nn.Parameter(torch.zeros(out_features, **factory))

    def parameters_of_op(self) -> NormedProjection:
        return NormedProjection(self.weight, self.bias, self.norm_weight, self.norm_bias, self.eps)


def _projection(linear: nn.Linear) -> Projection:
    return Projection(linear.weight, linear.bias)


class BottleneckInput(nn.Module):
    """q, k, v [..., attention_width] and u0 [..., width] of h [..., wide_width]: a MobileBERT layer in front of its
    attention.

        u0 = N(W_in h + b),   s = N(W_s h + b),   q = W_q s + b,   k = W_k s + b,   v = W_v h + b

    Args:
        wide_width: of the stream between layers.
        width: of the one inside of them.
        attention_width: of q, k and v, all heads together; `width` unless given.
        shared: whether query and key have a bottleneck. Without it they are made of h.
        from_bottleneck: whether query, key and value are made of u0 instead; `shared` is then without meaning.
        eps: None for NoNorm, x * weight + bias; a number for LayerNorm.

    Parameters: those of the nn.Linear modules `query`, `key`, `value`, `input` and, where there is one, `shared`, the
    last two with norm_weight and norm_bias, ones and zeros at first.
    """

    def __init__(
        self,
        wide_width: int,
        width: int,
        attention_width: int | None = None,
        *,
        shared: bool = True,
        from_bottleneck: bool = False,
        eps: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if eps is not None:
            check_eps("BottleneckInput", eps)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        shared = shared and not from_bottleneck
        A = width if attention_width is None else attention_width
        query_width = width if shared or from_bottleneck else wide_width
        self.from_bottleneck = from_bottleneck
        self.query = nn.Linear(query_width, A, **factory)
        self.key = nn.Linear(query_width, A, **factory)
        self.value = nn.Linear(width if from_bottleneck else wide_width, A, **factory)
        self.input = _Normed(wide_width, width, eps, **factory)
        self.shared = _Normed(wide_width, width, eps, **factory) if shared else None

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return bottleneck_input(
            h,
            _projection(self.query),
            _projection(self.key),
            _projection(self.value),
            self.input.parameters_of_op(),
            None if self.shared is None else self.shared.parameters_of_op(),
            from_bottleneck=self.from_bottleneck,
        )


class BottleneckFFN(nn.Module):
    """h [..., wide_width] of the next layer: a MobileBERT layer behind its attention.

        u = N(W_o attention + b + u0)
        u = N(B act(A u + a) + b + u)          `blocks` times
        y = N(dropout(W_out u + b) + h)

    Args:
        wide_width: of h. None for a layer without a bottleneck: it has u alone, and no W_out.
        width: of u0.
        inner_width: of the feed-forward blocks inside.
        attention_width: of what the attention gives; `width` unless given.
        blocks: how many of them there are, at least 1.
        activation: "relu", "gelu", "gelu_tanh" or "silu".
        eps: None for NoNorm, x * weight + bias; a number for LayerNorm.
        dropout_p: probability of an element to be dropped in training, in [0, 1].

    Parameters: those of the nn.Linear modules `output`, `expand[i]`, `contract[i]` and `out`; all but `expand` have
    norm_weight and norm_bias, ones and zeros at first.
    """

    def __init__(
        self,
        wide_width: int | None,
        width: int,
        inner_width: int,
        attention_width: int | None = None,
        *,
        blocks: int = 4,
        activation: str = "relu",
        eps: float | None = None,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1; it is {blocks}")
        check_activation(activation)
        _dropout.check_probability(dropout_p)
        if eps is not None:
            check_eps("BottleneckFFN", eps)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.activation, self.dropout_p = activation, dropout_p
        self.output = _Normed(width if attention_width is None else attention_width, width, eps, **factory)
        self.expand = nn.ModuleList([nn.Linear(width, inner_width, **factory) for _ in range(blocks)])
        self.contract = nn.ModuleList([_Normed(inner_width, width, eps, **factory) for _ in range(blocks)])
        self.out = None if wide_width is None else _Normed(width, wide_width, eps, **factory)

    def forward(
        self, attention: Tensor, u0: Tensor, h: Tensor | None = None, rng_state: Tensor | None = None
    ) -> Tensor:
        """`rng_state`, int64 [2], says what is dropped; without it, training with dropout draws one from torch's
        generator."""
        dropout_p = self.dropout_p if self.training else 0.0
        if dropout_p > 0 and rng_state is None:
            rng_state = _dropout.draw(u0.device)
        pairs: Any = zip(self.expand, self.contract, strict=True)
        return bottleneck_ffn(
            attention,
            u0,
            h,
            self.output.parameters_of_op(),
            [(_projection(expand), contract.parameters_of_op()) for expand, contract in pairs],
            None if self.out is None else self.out.parameters_of_op(),
            activation=self.activation,
            dropout_p=dropout_p,
            rng_state=rng_state,
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation}, dropout_p={self.dropout_p}"
