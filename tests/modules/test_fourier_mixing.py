from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

from encoders_fast.modules import FourierMixing, FourierMixingLayerNorm
from tests.closeness import relative_error


def test_fourier_mixing_has_no_parameters_and_mixes():
    x = torch.randn(2, 7, 12)
    module = FourierMixing(norm="ortho")
    assert not list(module.parameters())
    assert relative_error(module(x), torch.fft.fft2(x.double(), norm="ortho").real) <= 5e-7
    assert repr(module) == "FourierMixing(norm='ortho')"


def test_fourier_mixing_layer_norm_against_plain_modules():
    x = torch.randn(2, 7, 12, requires_grad=True)
    module = FourierMixingLayerNorm(12, eps=1e-6)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    twin = copy.deepcopy(module).double()
    y = module(x)
    wide = x.detach().double().requires_grad_()
    exact = F.layer_norm(wide + torch.fft.fft2(wide).real, (12,), twin.weight, twin.bias, 1e-6)
    assert relative_error(y, exact) <= 1e-6
    y.square().sum().backward()
    exact.square().sum().backward()
    for ours, right in (
        (x.grad, wide.grad),
        (module.weight.grad, twin.weight.grad),
        (module.bias.grad, twin.bias.grad),
    ):
        assert relative_error(ours, right) <= 2e-6


def test_state_dict_is_that_of_a_layer_norm():
    module = FourierMixingLayerNorm(8, dtype=torch.bfloat16)
    norm = torch.nn.LayerNorm(8, dtype=torch.bfloat16)
    module.load_state_dict(norm.state_dict(), strict=True)
    norm.load_state_dict(module.state_dict(), strict=True)
    assert module(torch.randn(1, 3, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert repr(module) == "FourierMixingLayerNorm(8, eps=1e-12, norm='backward')"
    assert FourierMixingLayerNorm(8, device="meta").weight.is_meta
