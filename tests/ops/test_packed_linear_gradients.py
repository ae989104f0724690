"""packed_linear's gradients against plain PyTorch in float64, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import clear_packed, packed_bytes, packed_linear, packed_linears
from encoders_fast.ops.packed_linear import op
from encoders_fast.ops.packed_linear.checks import ACTIVATIONS
from tests.closeness import assert_as_good_as
from tests.ops.test_packed_linear import BACKENDS, inputs, needs, plain

# (M, K, N): borders of the parts of dW (512 terms in float32, 2048 in bfloat16), ragged tiles and panels, an odd number
# of terms, an odd N, whose dx bfloat16 leaves to torch's product, a tile that is all there is.
SIZES = [(5, 2, 3), (128, 64, 64), (257, 70, 130), (513, 34, 65), (1030, 66, 10), (2051, 16, 72), (4099, 40, 2)]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch) -> Iterator[None]:
    """Every new tensor starts as NaN, no test finds what another packed, and few rows do not go to torch."""
    monkeypatch.setattr(op, "GRADIENT_ROWS", dict.fromkeys(op.GRADIENT_ROWS, 1))
    torch.use_deterministic_algorithms(True)
    clear_packed()
    yield
    torch.use_deterministic_algorithms(False)


def gradients(function, tensors: list[Tensor | None], *more, dy: Tensor | None = None) -> list[Tensor | None]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves[:3], *more, leaves[3])
    y.backward(torch.ones_like(y) if dy is None else dy.to(y.dtype))
    return [None if t is None else t.grad for t in leaves]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend, size, dtype):
    tensors = inputs(size, dtype)
    needs(backend, *tensors[:2])
    dy = torch.randn(size[0], size[2], dtype=torch.float64).to(dtype)
    for activation, given in [(name, tensors) for name in ACTIVATIONS] + [("relu", [*tensors[:2], None, None])]:
        with use_backend(backend), _dispatch.record() as calls:
            ours = gradients(packed_linear, given, activation, dy=dy)
        assert calls == [("packed_linear", backend)]
        theirs = gradients(plain, given, activation, dy=dy)
        exact = gradients(plain, [None if t is None else t.double() for t in given], activation, dy=dy)
        for one, other, right in zip(ours, theirs, exact, strict=True):
            if right is not None:
                assert_as_good_as(one, other, right)
    assert packed_bytes() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_weights(backend, dtype):
    x = torch.randn(3, 200, 32).to(dtype)
    weights = [(torch.randn(n, 32) / 6).to(dtype) for n in (8, 130, 4)]
    biases = [torch.randn(8).to(dtype), None, torch.randn(4).to(dtype)]
    dys = [torch.randn(3, 200, n).to(dtype) for n in (8, 130, 4)]
    needs(backend, x, weights[0])

    def run(call, wide, unused):
        leaves = [
            None if t is None else (t.double() if wide else t.clone()).requires_grad_() for t in (x, *weights, *biases)
        ]
        outputs = call(leaves[0], leaves[1:4], leaves[4:])
        used = [i for i in range(3) if i != unused]
        torch.autograd.backward([outputs[i] for i in used], [dys[i].to(outputs[i].dtype) for i in used])
        return [None if t is None else t.grad for t in leaves]

    def separately(x, weights, biases):
        return [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]

    for unused in (None, 1):
        with use_backend(backend):
            ours = run(packed_linears, False, unused)
        for one, other, right in zip(ours, run(separately, False, unused), run(separately, True, unused), strict=True):
            assert (one is None) == (right is None)
            if right is not None:
                assert_as_good_as(one, other, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wanted", range(1, 16))
def test_any_subset_of_gradients(wanted, dtype):
    tensors = inputs((130, 20, 12), dtype)
    leaves = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
    all_of_them = gradients(packed_linear, tensors, "gelu")
    y = packed_linear(*leaves[:3], "gelu", leaves[3])
    y.backward(torch.ones_like(y))
    for i, (leaf, expected) in enumerate(zip(leaves, all_of_them, strict=True)):
        assert (leaf.grad is not None) == bool(wanted >> i & 1)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_gradients(backend):
    tensors = inputs((130, 6, 4), torch.float32)
    needs(backend, *tensors[:2])
    for activation in ACTIVATIONS:

        def second(call, given, activation=activation):
            leaves = [t.detach().clone().requires_grad_() for t in given]
            y = call(*leaves[:3], activation, leaves[3])
            first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
            sum(part.square().sum() for part in first).backward()
            return [leaf.grad for leaf in leaves]

        with use_backend(backend):
            ours = second(packed_linear, tensors)
        theirs, exact = second(plain, tensors), second(plain, [t.double() for t in tensors])
        for one, other, right in zip(ours, theirs, exact, strict=True):
            assert_as_good_as(one, other, right)


def test_strides_dimensions_and_expanded_gradients():
    x, weight, bias, residual = inputs((260, 20, 12), torch.float32)
    expected = gradients(packed_linear, [x, weight, bias, residual], "silu")
    given = [x.t().contiguous().t().view(4, 65, 20), weight.t().contiguous().t(), bias, residual.view(4, 65, 12)]
    leaves = [t.detach().requires_grad_() for t in given]
    packed_linear(*leaves[:3], "silu", leaves[3]).sum().backward()
    for leaf, right in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, right.view(leaf.shape))
    wide = torch.randn(260, 40, requires_grad=True)
    packed_linear(wide[:, 20:], weight).sum().backward()
    torch.testing.assert_close(wide.grad[:, 20:], weight.sum(0).expand(260, 20))
    assert not wide.grad[:, :20].any()


def test_one_weight_twice_and_weights_with_a_history():
    x, first, second = torch.randn(140, 24), torch.randn(24, 24), torch.randn(24, 24)
    results = []
    for call in (packed_linear, F.linear):
        a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
        weight = a * b
        call(call(x, weight).tanh(), weight).square().mean().backward()
        results.append((a.grad, b.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["x", "weight"])
def test_changed_between_forward_and_backward(which):
    x, weight, bias, _ = (t.requires_grad_() for t in inputs((140, 24, 8), torch.float32))
    y = packed_linear(x, weight, bias, "gelu")
    with torch.no_grad():
        bias.add_(1)  # nobody needs it any more
        {"x": x, "weight": weight}[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_saves_no_more_than_torch():
    def saved(call, activation, residual, needed):
        x, weight, bias, r = inputs((256, 32, 64), torch.float32)
        found: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            found[t.data_ptr()] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            given = [t.requires_grad_(one) for t, one in zip((x, weight, bias), needed, strict=True)]
            call(*given, activation, r.requires_grad_() if residual else None)
        return sum(found.values())

    for activation in ACTIVATIONS:
        for residual in (False, True):
            for needed in product((False, True), repeat=3):
                options = (activation, residual, needed)
                assert saved(packed_linear, *options) <= saved(plain, *options), options


def test_changes_that_no_gradient_minds():
    x, weight, bias, _ = inputs((140, 24, 8), torch.float32)
    bias.requires_grad_()
    y = packed_linear(x, weight.clone().requires_grad_(), bias)  # x alone is needed
    held = x.clone().requires_grad_()
    y = packed_linear(held, weight, bias)  # the weight alone is needed
    with torch.no_grad():
        held.add_(1)
    y.sum().backward()
    torch.testing.assert_close(held.grad, weight.sum(0).expand(140, 24))
    changed = weight.clone().requires_grad_()
    y = packed_linear(x, changed, bias)
    with torch.no_grad():
        changed.add_(1)
    y.sum().backward()
    torch.testing.assert_close(changed.grad, x.sum(0).expand(8, 24), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        inside = x.clone()
    packed_linear(inside, weight, bias).sum().backward()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_first_gradient_with_a_graph_of_its_own_after_a_change_of_the_bias(activation):
    results = []
    for call in (packed_linear, plain):
        x, weight, bias, _ = (t.requires_grad_() for t in inputs((140, 24, 8), torch.float32))
        y = call(x, weight, bias, activation, None)
        with torch.no_grad():
            bias.add_(1)
        results.append(torch.autograd.grad(y.sum(), (x, weight), create_graph=True))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_results_may_be_changed_in_place():
    x, weight, bias, _ = inputs((280, 24, 8), torch.float32)
    for shape in ((280, 24), (4, 70, 24)):
        results = []
        for call in (packed_linear, F.linear):
            leaves = [t.clone().requires_grad_() for t in (x.view(shape), weight, bias)]
            y = call(*leaves)
            y[..., 3] = 0
            (y * 2).square().sum().backward()
            results.append([leaf.grad for leaf in leaves])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        first, second = packed_linears(x.view(shape).clone().requires_grad_(), [weight, weight])
        first[..., 0].zero_()
        second.mul_(2)
        torch.testing.assert_close(second[..., 0], 2 * F.linear(x.view(shape), weight)[..., 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    tensors = inputs((1030, 66, 130), dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(packed_linear, tensors, "none"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradients_in_batches_under_autocast_and_checkpoints():
    x, weight, bias, _ = (t.requires_grad_() for t in inputs((130, 10, 6), torch.float32))
    y = packed_linear(x, weight, bias, "silu")
    dys = torch.randn(3, 130, 6)
    together = torch.autograd.grad(y, (x, weight, bias), dys, retain_graph=True, is_grads_batched=True)
    for i in range(3):
        for part, one in zip(
            together, torch.autograd.grad(y, (x, weight, bias), dys[i], retain_graph=True), strict=True
        ):
            torch.testing.assert_close(part[i], one, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed_linear(x, weight, bias).dtype == torch.bfloat16
    again = torch.utils.checkpoint.checkpoint(packed_linear, x, weight, bias, "silu", use_reentrant=False)
    for one, other in zip(
        torch.autograd.grad(again.sum(), (x, weight)), torch.autograd.grad(y.sum(), (x, weight)), strict=True
    ):
        assert torch.equal(one, other)


def test_few_rows_are_torch_operators(monkeypatch):
    monkeypatch.undo()
    x, weight, _, _ = (t.requires_grad_() for t in inputs((1024, 16, 8), torch.bfloat16))
    needs("brgemm", x, weight)
    names = [packed_linear(x[:rows], weight).grad_fn.name() for rows in (1023, 1024)]
    assert "Linears" not in names[0]
    assert "Linears" in names[1]


def test_a_layer_learns():
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    x, goal = torch.randn(256, 16), torch.randn(256, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        loss = (packed_linear(x, layer.weight, layer.bias) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        torch.testing.assert_close(packed_linear(x[:4], layer.weight, layer.bias), layer(x[:4]))
