"""Linear layers with what follows them: the same numbers, in one call where nobody looks on, and then only."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from encoders_fast import _dispatch
from encoders_fast.models.projections import activate, overwritable, project, project_together
from tests.closeness import assert_as_good_as

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
FUNCTIONS = [nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU(), nn.SiLU(), nn.Tanh(), F.relu]


@pytest.fixture
def linear():
    return nn.Linear(5, 7)


def hooked(linear):
    """The same layer, with somebody who looks on."""
    copy = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    copy.load_state_dict(linear.state_dict())
    copy.register_forward_hook(lambda *args: None)
    return copy.to(linear.weight.dtype)


def fused(linears, x):
    first, second, _ = linears
    return [project(first, x), *project_together(linears, x), *(activate(f, second, x) for f in FUNCTIONS)]


def spelled_out(linears, x):
    first, second, _ = linears
    return [first(x), *(linear(x) for linear in linears), *(f(second(x)) for f in FUNCTIONS)]


def gradients(outputs, linears, x):
    total = sum(((i + 1) * output).sum() for i, output in enumerate(outputs))
    return torch.autograd.grad(total, [x, *(p for linear in linears for p in linear.parameters())])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(dtype, bias):
    torch.manual_seed(0)
    linears = [nn.Linear(12, n, bias=bias).to(dtype) for n in (9, 9, 70)]
    wide = [copy.deepcopy(linear).double() for linear in linears]
    x = torch.randn(2, 3, 12).to(dtype).requires_grad_()
    plain, exact = spelled_out(linears, x), spelled_out(wide, x.double())
    with torch.no_grad():
        without_gradients = [fused(linears, x), fused([hooked(linear) for linear in linears], x)]
    outputs = fused(linears, x)
    for found in (outputs, *without_gradients):
        for y, same, right in zip(found, plain, exact, strict=True):
            assert_as_good_as(y.detach(), same.detach(), right.detach())
    wide_x = x.detach().double().requires_grad_()
    found, plain = gradients(outputs, linears, x), gradients(plain, linears, x)
    exact = gradients(spelled_out(wide, wide_x), wide, wide_x)
    for dx, same, right in zip(found, plain, exact, strict=True):
        assert_as_good_as(dx, same, right)


def packed(call):
    with _dispatch.record() as calls:
        call()
    return [op for op, _ in calls]


@torch.no_grad()
def test_one_call_where_nobody_looks_on(linear):
    x = torch.randn(3, 5)
    assert packed(lambda: project(linear, x)) == ["packed_linear"]
    assert packed(lambda: project_together([linear, linear], x)) == ["packed_linear"]
    for function in FUNCTIONS:
        known = isinstance(function, nn.GELU | nn.ReLU | nn.SiLU)
        assert packed(lambda function=function: activate(function, linear, x)) == (["packed_linear"] if known else [])


@torch.no_grad()
def test_modules_are_called_where_somebody_looks_on(linear):
    class Adapted(nn.Linear):
        """A subclass may do something else."""

    x, relu = torch.randn(3, 5), nn.ReLU()
    relu.register_forward_hook(lambda *args: None)
    assert packed(lambda: activate(relu, linear, x)) == []
    moved = nn.Linear(5, 7)
    moved.forward = linear.forward
    for other in (Adapted(5, 7), hooked(linear), moved):
        assert packed(lambda other=other: project(other, x)) == []
        assert packed(lambda other=other: project_together([linear, other], x)) == []
    everywhere = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert packed(lambda: project(linear, x)) == []
    everywhere.remove()
    assert packed(lambda: project(linear, x)) == ["packed_linear"]


def test_wrong_input_is_torchs_to_report(linear):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        project(linear, torch.randn(3, 6))
    with pytest.raises(RuntimeError, match="dtype"):
        project(linear, torch.randn(3, 5, dtype=torch.float64))


@torch.no_grad()
def test_what_others_may_hold_is_left_alone(linear):
    class Adapted(nn.Linear):
        """A subclass may return what it keeps."""

    y = linear(torch.randn(3, 5))
    assert overwritable(linear, y)
    assert not overwritable(Adapted(5, 7), y)
    assert not overwritable(hooked(linear), y)
    everywhere = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert not overwritable(linear, y)
    everywhere.remove()
    with torch.enable_grad():
        assert not overwritable(linear, linear(torch.randn(3, 5)))


@torch.no_grad()
@pytest.mark.parametrize(
    "place", ["output.dense", "output.dropout", "intermediate.intermediate_act_fn", "fourier.output.LayerNorm"]
)
def test_hooks_see_what_they_see_without_fusing(place):
    """A forward hook on any module of a layer gets its real output, and that output stays as it was."""
    from encoders_fast.models import FNetConfig, FNetModel

    config = FNetConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1, max_position_embeddings=8
    )
    model = FNetModel(config).eval()
    ids = torch.arange(6)[None]
    plain = model(ids).last_hidden_state
    seen = []

    def keep(module, args, output):
        seen.append((output, output.clone()))

    model.encoder.layer[0].get_submodule(place).register_forward_hook(keep)
    torch.testing.assert_close(model(ids).last_hidden_state, plain)
    ((held, as_it_was),) = seen
    assert torch.equal(held, as_it_was)
