"""What else than an eager call meets the op: compilers, tracers, modes, subclasses, transforms, autocast, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import fourier_mixing, fourier_mixing_layer_norm
from encoders_fast.ops.fourier_mixing import reference
from tests.closeness import relative_error

ops = torch.ops.encoders_fast
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own


def inputs(dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 10), (10,), (10,))
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_(grad) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype):
    x, weight, bias = inputs(dtype, grad=True)
    opcheck(ops.fourier_mixing.default, (x, "ortho", None))
    opcheck(ops.fourier_mixing_layer_norm.default, (x, weight, bias, 1e-5, "backward", True, None))
    opcheck(
        ops.fourier_mixing_layer_norm.default,
        (*(t.detach() for t in (x, weight, bias)), 1e-5, "backward", False, None),
        test_utils=("test_schema", "test_faketensor"),
    )
    with torch.no_grad():
        _, normalized, rstd = ops.fourier_mixing_layer_norm(x, weight, bias, 1e-5, "backward", True, None)
        dy = x.detach().flip(1)
        opcheck(
            ops.fourier_mixing_layer_norm_backward.default,
            (dy, weight.detach(), normalized, rstd, "backward", None),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_compiled_forward_and_backward_equal_eager():
    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fourier_mixing(fourier_mixing_layer_norm(x * 2, weight, bias, 1e-5), "ortho").square().sum()

    eager, compiled = inputs(grad=True), inputs(grad=True)
    loss(*eager).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)(*compiled).backward()
    for a, b in zip(eager, compiled, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_exported_program_has_one_node_per_call():
    class Mix(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return fourier_mixing_layer_norm(x, weight, bias)

    args = inputs()
    program = torch.export.export(Mix(), tuple(args))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(ops.fourier_mixing_layer_norm.default) == 1
    assert torch.equal(program.module()(*args), fourier_mixing_layer_norm(*args))


def test_modes_and_subclasses_see_the_registered_op():
    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.name())
            return func(*args, **(kwargs or {}))

    x, weight, bias = inputs()
    with Seen() as seen:
        y = fourier_mixing_layer_norm(x, weight, bias)
        fourier_mixing(x)
    assert "encoders_fast::fourier_mixing_layer_norm" in seen.names
    assert "encoders_fast::fourier_mixing" in seen.names
    assert torch.equal(y, fourier_mixing_layer_norm(x, weight, bias))

    class Named(Tensor):
        pass

    assert type(fourier_mixing(x.as_subclass(Named))) is Named
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert fourier_mixing(fake).shape == x.shape
        assert type(fourier_mixing(fake)) is type(fake)


def test_func_transforms():
    x, weight, bias = inputs(torch.float64)

    def ours(x: Tensor) -> Tensor:
        return fourier_mixing_layer_norm(x, weight, bias, 1e-3).pow(3).sum() + fourier_mixing(x).square().sum()

    def plain(x: Tensor) -> Tensor:
        y = reference.fourier_mixing_layer_norm(x, weight, bias, 1e-3, "backward", False)[0]
        return y.pow(3).sum() + reference.fourier_mixing(x, "backward").square().sum()

    def same(transform) -> bool:
        return relative_error(transform(ours), transform(plain)) < 1e-12

    tangent = x.flip(0)
    assert same(lambda f: torch.func.grad(f)(x))
    assert same(lambda f: torch.func.hessian(f)(x[:1, :2]))
    assert same(lambda f: torch.func.jacrev(torch.func.jacrev(f))(x[:1, :2]))
    assert same(lambda f: torch.func.jvp(f, (x,), (tangent,))[1])
    assert same(lambda f: torch.func.vmap(lambda row: f(row[None]))(x))
    assert same(lambda f: torch.func.vmap(torch.func.grad(lambda row: f(row[None])))(x))


def test_vmap_over_any_argument():
    x, weight, bias = inputs()
    batched = torch.func.vmap(fourier_mixing_layer_norm, in_dims=(1, None, None), out_dims=1)(
        torch.stack([x, 2 * x], 1), weight, bias
    )
    assert torch.equal(batched[:, 1], fourier_mixing_layer_norm(2 * x, weight, bias))
    weights = torch.stack([weight, weight.flip(0)])
    batched = torch.func.vmap(fourier_mixing_layer_norm, in_dims=(None, 0, None))(x, weights, bias)
    assert torch.equal(batched[1], fourier_mixing_layer_norm(x, weights[1], bias))


def test_forward_mode_keeps_tangents():
    x = inputs(torch.float64)[0]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x.flip(1))
        tangent = torch.autograd.forward_ad.unpack_dual(fourier_mixing(dual)).tangent
    assert relative_error(tangent, fourier_mixing(x.flip(1))) < 1e-14


def test_autocast():
    x, weight, bias = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fourier_mixing_layer_norm((x[0] @ x[0].T @ x[0])[None], weight, bias)
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


def test_forced_backend_holds_in_backward_on_another_thread():
    x = inputs(grad=True)[0]
    with use_backend("reference"):
        y = fourier_mixing_layer_norm(x, *inputs()[1:])
    with _dispatch.record() as calls:
        thread = threading.Thread(target=lambda: y.sum().backward())
        thread.start()
        thread.join()
    assert calls == [("fourier_mixing_layer_norm", "reference")]


def test_forced_backend_under_compile_recompiles():
    x = inputs()[0]
    compiled = torch.compile(fourier_mixing, fullgraph=True, backend="aot_eager")
    with _dispatch.record() as calls:
        compiled(x)
        with use_backend("reference"):
            compiled(x)
    assert calls[1] == ("fourier_mixing", "reference")
    assert calls[0] == ("fourier_mixing", _dispatch.explain(fourier_mixing, x).chosen)
