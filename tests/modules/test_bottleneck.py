from __future__ import annotations

import copy

import pytest
import torch

from encoders_fast import _dropout
from encoders_fast._dispatch import record
from encoders_fast.modules import BottleneckFFN, BottleneckInput
from encoders_fast.ops import NormedProjection, Projection
from tests.closeness import relative_error
from tests.ops.bottleneck_cases import STATE, plain_ffn, plain_input

H, D, A, F = 10, 6, 8, 7


def randomize(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def projection(linear):
    return Projection(linear.weight, linear.bias)


def normed(linear):
    return NormedProjection(linear.weight, linear.bias, linear.norm_weight, linear.norm_bias, linear.eps)


def assert_same(module, twin, outputs, exact, inputs, wide):
    for y, right in zip(outputs, exact, strict=True):
        assert relative_error(y, right) <= 1e-6
    sum(y.square().sum() for y in outputs).backward()
    sum(y.square().sum() for y in exact).backward()
    pairs = zip((*inputs, *module.parameters()), (*wide, *twin.parameters()), strict=True)
    for mine, right in pairs:
        assert relative_error(mine.grad, right.grad) <= 1e-5


@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("options", [{}, {"shared": False}, {"from_bottleneck": True}], ids=str)
def test_input(options, eps):
    h = torch.randn(2, 5, H, requires_grad=True)
    module = randomize(BottleneckInput(H, D, A, eps=eps, **options))
    twin = copy.deepcopy(module).double()
    wide = h.detach().double().requires_grad_()
    with record() as calls:
        outputs = module(h)
    assert [op for op, _ in calls] == ["bottleneck_input"]
    exact = plain_input(
        wide,
        projection(twin.query),
        projection(twin.key),
        projection(twin.value),
        normed(twin.input),
        None if twin.shared is None else normed(twin.shared),
        from_bottleneck=module.from_bottleneck,
    )
    assert_same(module, twin, outputs, exact, [h], [wide])


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
@pytest.mark.parametrize("wide_width", [H, None])
def test_ffn(wide_width, dropout_p):
    options = {"blocks": 2, "activation": "silu", "eps": 1e-2, "dropout_p": dropout_p}
    module = randomize(BottleneckFFN(wide_width, D, F, A, **options))
    twin = copy.deepcopy(module).double()
    widths = (A, D) if wide_width is None else (A, D, H)
    inputs = [torch.randn(2, 5, width, requires_grad=True) for width in widths]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    with record() as calls:
        y = module(*inputs, rng_state=STATE)
    assert [op for op, _ in calls] == ["bottleneck_ffn"]
    pairs = zip(twin.expand, twin.contract, strict=True)
    exact = plain_ffn(
        *(wide if wide_width is not None else (*wide, None)),
        normed(twin.output),
        [(projection(expand), normed(contract)) for expand, contract in pairs],
        None if twin.out is None else normed(twin.out),
        activation="silu",
        dropout_p=dropout_p,
        rng_state=STATE,
    )
    assert_same(module, twin, [y], [exact], inputs, wide)


def test_training_draws_a_mask_for_every_call_and_evaluation_none():
    module = BottleneckFFN(50, 4, 4, dropout_p=0.5)
    torch.nn.init.constant_(module.out.bias, 1000.0)
    attention, u0, h = torch.randn(4, 4), torch.randn(4, 4), torch.zeros(4, 50)
    torch.manual_seed(0)
    first, second = module(attention, u0, h), module(attention, u0, h)
    torch.manual_seed(0)
    assert torch.equal(module(attention, u0, h), first)
    assert not torch.equal(first, second)
    kept = _dropout.keep(_dropout.at(STATE, 0, 2), h.shape, 0.5)
    assert torch.equal(module(attention, u0, h, STATE) != 0, kept)
    module.eval()
    assert (module(attention, u0, h, STATE) != 0).all()


def test_training_without_dropout_leaves_torchs_generator_alone():
    module = BottleneckFFN(8, 4, 4)
    before = torch.get_rng_state()
    module(torch.randn(0, 4), torch.randn(0, 4), torch.randn(0, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters():
    """Norms that do nothing at first; dtypes and devices; as many blocks as in the paper."""
    module = BottleneckFFN(8, 4, 6, dtype=torch.bfloat16)
    assert len(module.expand) == len(module.contract) == 4
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    for layer in (module.output, module.out, *module.contract):
        assert layer.norm_weight.eq(1).all()
        assert layer.norm_bias.eq(0).all()
    assert BottleneckInput(8, 4, device="meta").input.norm_weight.is_meta
    other = BottleneckFFN(8, 4, 6, dtype=torch.bfloat16)
    other.load_state_dict(module.state_dict(), strict=True)
    assert "shared.weight" not in BottleneckInput(8, 4, from_bottleneck=True).state_dict()
    assert repr(module).startswith("BottleneckFFN(\n  activation=relu, dropout_p=0.0\n")


def test_bad_options():
    for options, error, sentence in (
        ({"blocks": 0}, ValueError, "blocks must be at least 1; it is 0"),
        ({"activation": "tanh"}, ValueError, "activation must be one of relu, .* it is 'tanh'"),
        ({"dropout_p": 1.5}, ValueError, r"dropout_p must be in \[0, 1\]; it is 1.5"),
        ({"eps": -1.0}, ValueError, "BottleneckFFN's eps must not be negative"),
    ):
        with pytest.raises(error, match=sentence):
            BottleneckFFN(8, 4, 6, **options)
    with pytest.raises(TypeError, match="BottleneckInput's eps must be a number"):
        BottleneckInput(8, 4, eps="a")
