from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from encoders_fast import _dropout
from encoders_fast.modules import ResidualLayerNorm
from tests.closeness import relative_error

STATE = torch.tensor([5, 6])


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_against_plain_modules(dropout_p):
    x, residual = (torch.randn(2, 7, 12, requires_grad=True) for _ in range(2))
    module = ResidualLayerNorm(12, eps=1e-6, dropout_p=dropout_p)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    twin = copy.deepcopy(module).double()
    y, s = module(x, residual, STATE)
    wide = [t.detach().double().requires_grad_() for t in (x, residual)]
    exact_s = wide[1] + wide[0] * _dropout.keep(STATE, x.shape, dropout_p) / (1 - dropout_p)
    exact_y = F.layer_norm(exact_s, (12,), twin.weight, twin.bias, 1e-6)
    assert relative_error(s, exact_s) <= 1e-7
    assert relative_error(y, exact_y) <= 1e-6
    (y.square().sum() + s.square().sum()).backward()
    (exact_y.square().sum() + exact_s.square().sum()).backward()
    for ours, right in ((x, wide[0]), (residual, wide[1]), (module.weight, twin.weight), (module.bias, twin.bias)):
        assert relative_error(ours.grad, right.grad) <= 2e-6


def test_training_draws_a_mask_for_every_call_and_evaluation_none():
    x, residual = torch.ones(4, 50), torch.zeros(4, 50)
    module = ResidualLayerNorm(50, dropout_p=0.5)
    torch.manual_seed(0)
    first, second = module(x, residual)[1], module(x, residual)[1]
    torch.manual_seed(0)
    assert torch.equal(module(x, residual)[1], first)
    assert not torch.equal(first, second)
    assert 0 < (first == 0).float().mean() < 1
    assert torch.equal(module(x, residual, STATE)[1] != 0, _dropout.keep(STATE, x.shape, 0.5))
    module.eval()
    assert torch.equal(module(x, residual)[1], x)
    assert torch.equal(module(x, residual, STATE)[1], x)


def test_training_without_dropout_leaves_torchs_generator_alone():
    module = ResidualLayerNorm(8)
    before = torch.get_rng_state()
    module(torch.randn(0, 8), torch.randn(0, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_state_dict_is_that_of_a_layer_norm():
    module = ResidualLayerNorm(8, dtype=torch.bfloat16)
    norm = torch.nn.LayerNorm(8, dtype=torch.bfloat16)
    module.load_state_dict(norm.state_dict(), strict=True)
    norm.load_state_dict(module.state_dict(), strict=True)
    x = torch.randn(1, 3, 8, dtype=torch.bfloat16)
    assert [t.dtype for t in module(x, x)] == [torch.bfloat16] * 2
    assert repr(module) == "ResidualLayerNorm(8, eps=1e-05, dropout_p=0.0)"
    assert ResidualLayerNorm(8, device="meta").weight.is_meta
    with pytest.raises(ValueError, match=r"dropout_p must be in \[0, 1\]; it is 1.5"):
        ResidualLayerNorm(8, dropout_p=1.5)
