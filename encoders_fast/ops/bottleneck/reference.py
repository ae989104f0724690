"""What the two ops mean, in plain PyTorch. A backward pass computes again what lies between an op's inputs and outputs.

parameters.matrices are, in bottleneck_input, those of query, key, value, then of input and shared where these are
there; in bottleneck_ffn those of output, two for each feed-forward block, then that of out where it is there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._dropout import at, dropout
from .parameters import Parameters
from .products import (
    activate,
    activate_backward,
    norm,
    norm_backward,
    norm_gradients,
    product,
    product_backward,
    product_gradients,
)

ATTENTION_OUTPUT, LAYER_OUTPUT = 1, 2
"""The places that drop elements in a layer. Its place 0 is the attention's probabilities."""


class Gradients(NamedTuple):
    """Of an op's parameters, in their order and dtypes; empty where nobody wants them."""

    matrices: list[Tensor]
    biases: list[Tensor]
    norms: list[Tensor]


class _Tape:
    """Walks back through products and norms, and collects their parameters' gradients on the way."""

    def __init__(self, parameters: Parameters, wanted: bool) -> None:
        self.parameters, self.wanted = parameters, wanted
        self.gradients = Gradients([], [], [])
        if wanted:
            for found, tensors in zip(self.gradients, parameters[:3], strict=True):
                found.extend(tensors)  # until each is replaced by its gradient

    def product(self, i: int, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient of x in W_i x + b_i."""
        weight, bias = self.parameters.matrices[i], self.parameters.biases[i]
        if self.wanted:
            dweight, dbias = product_gradients(dy, x, weight)
            self.gradients.matrices[i], self.gradients.biases[i] = dweight.to(weight.dtype), dbias.to(bias.dtype)
        return product_backward(dy, weight)

    def norm(self, i: int, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient of x in N_i(x)."""
        weight, eps = self.parameters.norms[2 * i], self.parameters.eps[i]
        if self.wanted:
            dweight, dbias = norm_gradients(dy, x, eps)
            self.gradients.norms[2 * i : 2 * i + 2] = dweight.to(weight.dtype), dbias.to(weight.dtype)
        return norm_backward(dy, weight, x, eps)


def _product(parameters: Parameters, i: int, x: Tensor) -> Tensor:
    return product(x, parameters.matrices[i], parameters.biases[i])


def _norm(parameters: Parameters, i: int, x: Tensor) -> Tensor:
    return norm(x, parameters.norms[2 * i], parameters.norms[2 * i + 1], parameters.eps[i])


# ---- bottleneck_input


def bottleneck_input(h: Tensor, parameters: Parameters, from_bottleneck: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and u0, the last empty where there is no bottleneck."""
    has_bottleneck, has_shared = len(parameters.eps) > 0, len(parameters.eps) > 1
    u0 = _norm(parameters, 0, _product(parameters, 3, h)) if has_bottleneck else h.new_empty(0)
    shared = _norm(parameters, 1, _product(parameters, 4, h)) if has_shared else u0 if from_bottleneck else h
    value = u0 if from_bottleneck else h
    return (*(_product(parameters, i, x) for i, x in enumerate((shared, shared, value))), u0)  # type: ignore[return-value]


def bottleneck_input_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    du0: Tensor,
    h: Tensor,
    parameters: Parameters,
    from_bottleneck: bool,
    wanted: bool,
) -> tuple[Tensor, Gradients]:
    tape = _Tape(parameters, wanted)
    has_bottleneck, has_shared = len(parameters.eps) > 0, len(parameters.eps) > 1
    before_u0 = _product(parameters, 3, h) if has_bottleneck else h
    before_shared = _product(parameters, 4, h) if has_shared else h
    u0 = _norm(parameters, 0, before_u0) if from_bottleneck else h
    shared = _norm(parameters, 1, before_shared) if has_shared else u0

    dshared = tape.product(0, dq, shared) + tape.product(1, dk, shared)
    dvalue = tape.product(2, dv, u0)
    if from_bottleneck:
        dh, du0 = torch.zeros_like(h), du0 + dshared + dvalue
    else:
        dh = dvalue + (tape.product(4, tape.norm(1, dshared, before_shared), h) if has_shared else dshared)
    if has_bottleneck:
        dh = dh + tape.product(3, tape.norm(0, du0, before_u0), h)
    return dh, tape.gradients


# ---- bottleneck_ffn


class _Block(NamedTuple):
    """What the backward pass needs of a feed-forward block: N(sum), with sum = B act(before) + b + u."""

    u: Tensor
    before: Tensor
    sum: Tensor


class _Dropout(NamedTuple):
    """Both ways alike: what was dropped has no gradient, and the rest is scaled."""

    probability: float
    rng_state: Tensor | None

    def __call__(self, x: Tensor, site: int) -> Tensor:
        if self.rng_state is None or self.probability == 0:
            return x
        return dropout(x, self.probability, at(self.rng_state, 0, site))


def bottleneck_ffn(
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    parameters: Parameters,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
) -> Tensor:
    drop, last = _Dropout(dropout_p, rng_state), len(parameters.eps) - 1
    u = _norm(parameters, 0, _attended(attention, u0, h is None, parameters, drop))
    for i in range(1, last + (h is None)):
        hidden = activate(_product(parameters, 2 * i - 1, u), activation)
        u = _norm(parameters, i, _contracted(i, u, hidden, h is None and i == last, parameters, drop))
    return u if h is None else _norm(parameters, last, h + drop(_product(parameters, -1, u), LAYER_OUTPUT))


def _attended(attention: Tensor, u0: Tensor, drops: bool, parameters: Parameters, drop: _Dropout) -> Tensor:
    x = _product(parameters, 0, attention)
    return u0 + (drop(x, ATTENTION_OUTPUT) if drops else x)


def _contracted(i: int, u: Tensor, hidden: Tensor, drops: bool, parameters: Parameters, drop: _Dropout) -> Tensor:
    """What block i, counted from 1, normalizes."""
    x = _product(parameters, 2 * i, hidden)
    return u + (drop(x, LAYER_OUTPUT) if drops else x)


def bottleneck_ffn_backward(
    dy: Tensor,
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    parameters: Parameters,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Gradients]:
    """The gradients of attention, u0, h and, where they are `wanted`, of the parameters."""
    tape, drop, last = _Tape(parameters, wanted), _Dropout(dropout_p, rng_state), len(parameters.eps) - 1
    attended = _attended(attention, u0, h is None, parameters, drop)
    u, blocks = _norm(parameters, 0, attended), []
    for i in range(1, last + (h is None)):
        before = _product(parameters, 2 * i - 1, u)
        hidden = activate(before, activation)
        blocks.append(_Block(u, before, _contracted(i, u, hidden, h is None and i == last, parameters, drop)))
        u = _norm(parameters, i, blocks[-1].sum)

    dh, du = None, dy
    if h is not None:
        dh = tape.norm(last, dy, h + drop(_product(parameters, -1, u), LAYER_OUTPUT))
        du = tape.product(-1, drop(dh, LAYER_OUTPUT), u)
    for i, block in reversed(list(enumerate(blocks, start=1))):
        dsum = tape.norm(i, du, block.sum)
        dx = drop(dsum, LAYER_OUTPUT) if h is None and i == last else dsum
        dhidden = tape.product(2 * i, dx, activate(block.before, activation))
        du = dsum + tape.product(2 * i - 1, activate_backward(dhidden, block.before, activation), block.u)
    du0 = tape.norm(0, du, attended)
    dattention = tape.product(0, drop(du0, ATTENTION_OUTPUT) if h is None else du0, attention)
    return dattention, du0, dh, tape.gradients
