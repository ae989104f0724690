"""What an op gets that gives less than everything: no tangents, no batching, optional tensors, a written argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from encoders_fast._op import Derivatives, op

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own


def _forward(x: Tensor, scale: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    y = 2 * x if scale is None else x * scale
    return (y if mask is None else y * mask), x.square()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor | None, ...]:
    return inputs


def _backward(ctx: Any, dy: Tensor | None, dsquare: Tensor | None) -> tuple[Tensor | None, ...]:
    x, scale, mask = ctx.saved_tensors
    dx = dscale = None
    if dy is not None:
        dy = dy if mask is None else dy * mask
        dx = 2 * dy if scale is None else dy * scale
        dscale = None if scale is None else dy * x
    if dsquare is not None:
        dx = 2 * x * dsquare if dx is None else dx + 2 * x * dsquare
    return dx, dscale, None


scaled = op(
    "test_scaled(Tensor x, Tensor? scale, Tensor? mask) -> (Tensor y, Tensor square)",
    forward=_forward,
    fake=lambda x, scale, mask: (torch.empty_like(x), torch.empty_like(x)),
    derivatives=Derivatives(save=_save, backward=_backward),
)
halved = op(
    "test_halved(Tensor x, Tensor? y) -> Tensor", forward=lambda x, y: x / 2, fake=lambda x, y: x.new_empty(x.shape)
)


def _increment(x: Tensor) -> None:
    x += 1


increment = op("test_increment(Tensor(a!) x) -> ()", forward=_increment, fake=lambda x: None)


def plain(x: Tensor, scale: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return _forward(x, scale, mask)


def cases() -> list[tuple[Tensor | None, ...]]:
    generator = torch.Generator().manual_seed(0)
    x, scale, mask = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    return [(x, scale, mask), (x, None, mask), (x, scale, None), (x, None, None)]


@pytest.mark.parametrize("args", cases(), ids=["all", "no scale", "no mask", "x alone"])
def test_optional_tensors(args):
    opcheck(torch.ops.encoders_fast.test_scaled.default, args)
    leaves = [None if t is None else t.clone().requires_grad_(i < 2) for i, t in enumerate(args)]
    twins = [None if t is None else t.detach().clone().requires_grad_(t.requires_grad) for t in leaves]
    for function in (scaled, torch.compile(scaled, fullgraph=True, backend="aot_eager")):
        for used in ((0,), (1,), (0, 1)):
            ours, right = function(*leaves), plain(*twins)
            needed = [i for i in range(2) if leaves[i] is not None]
            gradients = [
                torch.autograd.grad(
                    sum(outputs[i].pow(3).sum() for i in used), [them[i] for i in needed], allow_unused=True
                )
                for outputs, them in ((ours, leaves), (right, twins))
            ]
            for actual, exact in zip(*gradients, strict=True):
                exact = torch.zeros_like(args[0]) if exact is None else exact
                torch.testing.assert_close(torch.zeros_like(exact) if actual is None else actual, exact)


@pytest.mark.parametrize(
    ("choose", "in_dims"),
    [
        (lambda x, scale, mask: (x, scale, mask), (0, 0, 0)),
        (lambda x, scale, mask: (x, scale, mask[:, 0]), (1, 1, None)),
        (lambda x, scale, mask: (x, scale[0], None), (0, None, None)),
        (lambda x, scale, mask: (x[0], None, mask), (None, None, 0)),
    ],
    ids=["all", "another dimension", "a shared scale", "a shared x"],
)
def test_vmap_without_a_rule(choose, in_dims):
    """One sample after another: any dimension, several outputs, arguments that are None, and gradients."""
    args = choose(*cases()[0])

    def gradient(function):
        return torch.func.grad(lambda *args: sum(y.pow(3).sum() for y in function(*args)))

    for transform in (lambda function: function, gradient):
        ours = torch.func.vmap(transform(scaled), in_dims=in_dims)(*args)
        torch.testing.assert_close(ours, torch.func.vmap(transform(plain), in_dims=in_dims)(*args))


def test_batched_gradients_of_several_outputs():
    args = [t.clone().requires_grad_() for t in cases()[0]]
    torch.autograd.gradcheck(scaled, [*args[:2], args[2].detach()], check_batched_grad=True)


def test_vmap_of_an_op_without_derivatives():
    x = torch.randn(3, 4)
    assert torch.equal(torch.func.vmap(halved, in_dims=(1, None))(x, None), x.T / 2)
    assert torch.equal(torch.func.vmap(halved, in_dims=(0, 0))(x, x), x / 2)
    with pytest.raises(NotImplementedError, match="the batch is empty"):
        torch.func.vmap(halved, in_dims=(0, None))(x[:0], None)


def test_forward_mode_without_a_rule():
    x, scale, _ = cases()[0]
    with pytest.raises(NotImplementedError, match="test_scaled has no forward-mode derivative"):
        torch.func.jvp(lambda x: scaled(x, scale, None), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="test_scaled has no forward-mode derivative"):
            scaled(dual, scale, None)
        # Nothing to derive: the level alone is no reason to refuse.
        torch.testing.assert_close(scaled(x, scale, None), plain(x, scale, None))


def test_written_argument():
    x = torch.zeros(3)
    increment(x)
    torch.ops.encoders_fast.test_increment(x)
    torch.compile(increment, fullgraph=True, backend="aot_eager")(x)
    assert x.tolist() == [3, 3, 3]
    opcheck(torch.ops.encoders_fast.test_increment.default, (x,))
