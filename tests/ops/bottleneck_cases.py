"""MobileBERT's two ops as one writes them without ops, and arguments for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders_fast import _dropout
from encoders_fast.ops import NormedProjection, Projection, bottleneck_ffn, bottleneck_input
from tests.closeness import relative_error

STATE = torch.tensor([42, 2**40 + 7])
ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


class Sizes(NamedTuple):
    rows: tuple[int, ...]
    H: int
    D: int
    A: int
    F: int
    blocks: int


SMALL = Sizes((2, 3), 10, 6, 8, 7, 2)


class Arguments(NamedTuple):
    """Of one call: tensors, alone and in projections, and the rest."""

    tensors: tuple[Any, ...]
    options: dict[str, Any]

    def leaves(self) -> list[Tensor]:
        return list(_leaves(self.tensors))

    def with_leaves(self, leaves: list[Tensor]) -> Arguments:
        return Arguments(_replaced(self.tensors, iter(leaves)), self.options)


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)


def _replaced(value: Any, leaves: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(leaves)
    if isinstance(value, (tuple, list)):
        items = [_replaced(item, leaves) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class _Maker:
    def __init__(self, seed: int, eps: float | None) -> None:
        self.generator, self.eps = torch.Generator().manual_seed(seed), eps

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def stream(self, rows: tuple[int, ...], width: int) -> Tensor:
        """With a mean, and a loud channel, as activations have them."""
        x = self.randn(*rows, width) + 0.5
        x[..., width // 2] *= 30
        return x

    def linear(self, out: int, width: int) -> Projection:
        return Projection(self.randn(out, width) * width**-0.5, 0.3 * self.randn(out))

    def normed(self, out: int, width: int) -> NormedProjection:
        return NormedProjection(*self.linear(out, width), 1 + 0.3 * self.randn(out), 0.3 * self.randn(out), self.eps)


VARIANTS = ("shared", "from bottleneck", "wide", "no bottleneck")


def input_arguments(sizes: Sizes = SMALL, variant: str = "shared", eps: float | None = None) -> Arguments:
    make, (rows, H, D, A, _, _) = _Maker(0, eps), sizes
    h = make.stream(rows, H)
    query = {"shared": D, "from bottleneck": D}.get(variant, H)
    value = D if variant == "from bottleneck" else H
    projections = [make.linear(A, query), make.linear(A, query), make.linear(A, value)]
    input = None if variant == "no bottleneck" else make.normed(D, H)
    shared = make.normed(D, H) if variant == "shared" else None
    return Arguments((h, *projections, input, shared), {"from_bottleneck": variant == "from bottleneck"})


def ffn_arguments(
    sizes: Sizes = SMALL,
    eps: float | None = None,
    activation: str = "relu",
    dropout_p: float = 0.0,
    bottleneck: bool = True,
) -> Arguments:
    make, (rows, H, D, A, F, blocks) = _Maker(1, eps), sizes
    attention, u0, h = make.stream(rows, A), make.stream(rows, D), make.stream(rows, H)
    pairs = [(make.linear(F, D), make.normed(D, F)) for _ in range(blocks)]
    ends = (h, make.normed(D, A), pairs, make.normed(H, D)) if bottleneck else (None, make.normed(D, A), pairs, None)
    options = {"activation": activation, "dropout_p": dropout_p, "rng_state": STATE if dropout_p else None}
    return Arguments((attention, u0, *ends), options)


def _norm(x: Tensor, p: NormedProjection) -> Tensor:
    if p.eps is None:
        return x * p.norm_weight + p.norm_bias
    return F.layer_norm(x, x.shape[-1:], p.norm_weight, p.norm_bias, p.eps)


def plain_input(
    h: Tensor,
    query: Projection,
    key: Projection,
    value: Projection,
    input: NormedProjection | None,
    shared: NormedProjection | None,
    *,
    from_bottleneck: bool,
) -> tuple[Tensor, ...]:
    u0 = h if input is None else _norm(F.linear(h, *input[:2]), input)
    s = u0 if from_bottleneck else h if shared is None else _norm(F.linear(h, *shared[:2]), shared)
    return F.linear(s, *query), F.linear(s, *key), F.linear(u0 if from_bottleneck else h, *value), u0


def plain_ffn(
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    output: NormedProjection,
    feed_forwards: list[tuple[Projection, NormedProjection]],
    out: NormedProjection | None,
    *,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
) -> Tensor:
    def dropped(x: Tensor, site: int, here: bool) -> Tensor:
        if not here or not dropout_p:
            return x
        return x * _dropout.keep(_dropout.at(STATE, 0, site), x.shape, dropout_p) / (1 - dropout_p)

    narrow = h is None
    u = _norm(dropped(F.linear(attention, *output[:2]), 1, narrow) + u0, output)
    for i, (expand, contract) in enumerate(feed_forwards):
        x = F.linear(ACTIVATIONS[activation](F.linear(u, *expand)), *contract[:2])
        u = _norm(dropped(x, 2, narrow and i == len(feed_forwards) - 1) + u, contract)
    return u if out is None else _norm(dropped(F.linear(u, *out[:2]), 2, True) + h, out)


OPS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Arguments]]] = {
    "bottleneck_input": (bottleneck_input, plain_input, input_arguments),
    "bottleneck_ffn": (bottleneck_ffn, plain_ffn, ffn_arguments),
}
"""Name -> the op, what one writes without it, and a maker of arguments."""


def run(function: Callable[..., Any], arguments: Arguments, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs, and the gradients of all tensors for random gradients of the outputs."""
    leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in arguments.leaves()]
    made = arguments.with_leaves(leaves)
    outputs = function(*made.tensors, **made.options)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(7)
    dys = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    return outputs, list(torch.autograd.grad(outputs, leaves, dys))


def assert_together_as_good_as(
    actual: list[Tensor], same_dtype: list[Tensor], exact: list[Tensor], dtypes: bool = True
) -> None:
    """All tensors' relative errors as one vector, at most twice plain PyTorch's: a tensor of few numbers can be off by
    luck, and one number that crosses ReLU's kink changes several tensors. Each by itself loosely."""
    ours, theirs = [], []
    for mine, plain, right in zip(actual, same_dtype, exact, strict=True):
        assert mine.shape == right.shape
        assert mine.dtype == plain.dtype or not dtypes
        assert right.norm() > 0, "nothing can be learnt from zeros"
        ours.append(relative_error(mine, right))
        theirs.append(relative_error(plain, right))
        assert ours[-1] <= 10 * theirs[-1] + 4 * torch.finfo(plain.dtype).eps
    floor = torch.finfo(same_dtype[0].dtype).eps * 0.5
    assert sum(e**2 for e in ours) ** 0.5 <= 2 * sum(e**2 for e in theirs) ** 0.5 + floor
