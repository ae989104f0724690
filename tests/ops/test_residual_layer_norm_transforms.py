"""What else than an eager call meets the op: compilers, tracers, modes, subclasses, transforms, autocast, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from encoders_fast import _dispatch, _dropout, explain, use_backend
from encoders_fast.ops import residual_layer_norm
from encoders_fast.ops.residual_layer_norm import onnx as _onnx  # noqa: F401  as every model does
from tests.closeness import relative_error

ops = torch.ops.encoders_fast
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
STATE = torch.tensor([42, 2**40 + 7])


def inputs(dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 10), (2, 6, 10), (10,), (10,))
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_(grad) for s in shapes]


def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float) -> tuple[Tensor, Tensor]:
    s = residual + x * _dropout.keep(STATE, x.shape, p) / (1 - p)
    return F.layer_norm(s, s.shape[-1:], weight, bias, eps), s


@pytest.mark.parametrize(("dropout_p", "state"), [(0.0, None), (0.0, STATE), (0.3, STATE)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype, dropout_p, state):
    args = inputs(dtype, grad=True)
    opcheck(ops.residual_layer_norm.default, (*args, 1e-5, dropout_p, state, None))
    half_beside_float32 = [t.detach() for t in (*args[:2], *(t.float() for t in args[2:]))]
    without_gradient = ("test_schema", "test_faketensor")
    opcheck(
        ops.residual_layer_norm.default,
        (*half_beside_float32, 1e-5, dropout_p, state, None),
        test_utils=without_gradient,
    )
    with torch.no_grad():
        y, s, mean, rstd = ops.residual_layer_norm(*args, 1e-5, dropout_p, state, None)
    for ds in (None, s.flip(1)):
        saved = (y.flip(0), ds, s, args[2].detach(), mean, rstd)
        opcheck(ops.residual_layer_norm_backward.default, (*saved, dropout_p, state, None), test_utils=without_gradient)
    empty = [t.detach()[:0] for t in args[:2]] + [t.detach() for t in args[2:]]
    opcheck(ops.residual_layer_norm.default, (*empty, 1e-5, dropout_p, state, None), test_utils=without_gradient)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("used", ["y", "s", "both"])
def test_compiled_forward_and_backward_equal_eager(used, dropout_p):
    def loss(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        y, s = residual_layer_norm(x * 2, residual, weight, bias, 1e-5, dropout_p, _dropout.at(state, 1, 2))
        return {"y": y.pow(3).sum(), "s": s.pow(3).sum(), "both": (y * s).sum()}[used]

    eager, compiled = inputs(grad=True), inputs(grad=True)
    loss(*eager, STATE).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)(*compiled, STATE).backward()
    for a, b in zip(eager, compiled, strict=True):
        if a.grad is None:  # weight and bias, where y is not used
            assert used == "s"
            assert b.grad is None or b.grad.eq(0).all()
        else:
            assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_exported_program_has_one_node_per_call(dropout_p):
    """Also with a number of rows that is not known, for which torch takes shapes from the op's ONNX form."""

    class Block(torch.nn.Module):
        def forward(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
            y, s = residual_layer_norm(x, residual, weight, bias, 1e-5, dropout_p, state)
            return y + s

    args = (*inputs(), STATE)
    rows = torch.export.Dim("rows")
    program = torch.export.export(Block(), args, dynamic_shapes=({0: rows}, {0: rows}, None, None, None))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(ops.residual_layer_norm.default) == 1
    longer = [torch.cat([t, t.flip(1)]) for t in args[:2]]
    assert torch.equal(program.module()(*longer, *args[2:]), Block()(*longer, *args[2:]))


def test_modes_and_subclasses_see_the_registered_op():
    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.name())
            return func(*args, **(kwargs or {}))

    args = inputs()
    with Seen() as seen:
        y, _ = residual_layer_norm(*args)
    assert "encoders_fast::residual_layer_norm" in seen.names
    assert torch.equal(y, residual_layer_norm(*args)[0])

    class Named(Tensor):
        pass

    assert type(residual_layer_norm(args[0].as_subclass(Named), *args[1:])[0]) is Named
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in args]
        for fake in residual_layer_norm(*fakes, 1e-5, 0.1, mode.from_tensor(STATE)):
            assert fake.shape == args[0].shape
            assert type(fake) is type(fakes[0])


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_func_transforms(dropout_p):
    x, residual, weight, bias = inputs(torch.float64)

    def ours(x: Tensor) -> Tensor:
        y, s = residual_layer_norm(x, residual[: len(x)], weight, bias, 1e-3, dropout_p, STATE)
        return y.pow(3).sum() + s.pow(2).sum()

    def plainly(x: Tensor) -> Tensor:
        y, s = plain(x, residual[: len(x)], weight, bias, 1e-3, dropout_p)
        return y.pow(3).sum() + s.pow(2).sum()

    def same(transform) -> bool:
        return relative_error(transform(ours), transform(plainly)) < 1e-12

    tangent = x.flip(0)
    assert same(lambda f: torch.func.grad(f)(x))
    assert same(lambda f: torch.func.hessian(f)(x[:1]))
    assert same(lambda f: torch.func.jacrev(torch.func.jacrev(f))(x[:1]))
    assert same(lambda f: torch.func.jvp(f, (x,), (tangent,))[1])
    assert same(lambda f: torch.func.vmap(lambda row: f(row[None]))(x))
    assert same(lambda f: torch.func.vmap(torch.func.grad(lambda row: f(row[None])))(x))
    assert same(lambda f: torch.func.grad(lambda x: torch.func.vmap(lambda row: f(row[None]))(x).sum())(x))


def test_jvp_of_every_argument():
    args = inputs(torch.float64)
    tangents = [t.flip(0) for t in args]

    def ours(*args: Tensor) -> tuple[Tensor, Tensor]:
        return residual_layer_norm(*args, 1e-3, 0.3, STATE)

    def plainly(*args: Tensor) -> tuple[Tensor, Tensor]:
        return plain(*args, 1e-3, 0.3)

    for needed in ((0,), (1,), (2,), (3,), (0, 1, 2, 3)):

        def along(function, needed=needed):
            def some(*chosen: Tensor) -> tuple[Tensor, Tensor]:
                return function(*(chosen[needed.index(i)] if i in needed else t for i, t in enumerate(args)))

            return torch.func.jvp(some, tuple(args[i] for i in needed), tuple(tangents[i] for i in needed))[1]

        for actual, exact in zip(along(ours), along(plainly), strict=True):
            assert exact.norm() == actual.norm() == 0 or relative_error(actual, exact) < 1e-12


def test_vmap_over_any_argument():
    x, residual, weight, bias = inputs()
    batched, _ = torch.func.vmap(residual_layer_norm, in_dims=(1, None, None, None), out_dims=1)(
        torch.stack([x, 2 * x], 1), residual, weight, bias
    )
    assert torch.equal(batched[:, 1], residual_layer_norm(2 * x, residual, weight, bias)[0])
    weights = torch.stack([weight, weight.flip(0)])
    batched, _ = torch.func.vmap(residual_layer_norm, in_dims=(None, None, 0, None))(x, residual, weights, bias)
    assert torch.equal(batched[1], residual_layer_norm(x, residual, weights[1], bias)[0])

    states = torch.stack([STATE, STATE + 1])

    def dropped(state: Tensor) -> Tensor:
        return residual_layer_norm(x, residual, weight, bias, 1e-5, 0.5, state)[1]

    sums = torch.func.vmap(dropped)(states)
    assert torch.equal(sums[0], dropped(STATE))
    assert torch.equal(sums[1], dropped(STATE + 1))
    assert not torch.equal(sums[0], sums[1])


def test_autocast():
    """Under autocast a branch comes in bfloat16 and the stream in float32: the sum promotes, as x + residual does."""
    x, residual, weight, bias = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        branch = F.linear(x, x[0, :, :].T @ x[0])
        y, s = residual_layer_norm(branch, residual, weight, bias)
        half, _ = residual_layer_norm(branch, residual.bfloat16(), weight, bias)
    assert branch.dtype == half.dtype == torch.bfloat16
    assert y.dtype == s.dtype == torch.float32
    assert torch.equal(s, residual + branch)


def test_forced_backend_holds_in_backward_on_another_thread():
    args = inputs(grad=True)
    with use_backend("reference"):
        y, _ = residual_layer_norm(*args)
    with _dispatch.record() as calls:
        thread = threading.Thread(target=lambda: y.sum().backward())
        thread.start()
        thread.join()
    assert calls == [("residual_layer_norm", "reference")]


def test_explain_names_the_backend():
    args = inputs()
    with _dispatch.record() as calls:
        residual_layer_norm(*args)
    assert calls == [("residual_layer_norm", explain(residual_layer_norm, *args).chosen)]
