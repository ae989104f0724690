"""What is written in place, and when: only into memory that nobody else can see, and without changing a dtype."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from encoders_fast.models.activations import activate, add_residual, overwritable


@pytest.fixture
def linear():
    return nn.Linear(5, 7)


@torch.no_grad()
def test_values(linear):
    x, residual = torch.randn(3, 5), torch.randn(3, 7)
    before = residual.clone()
    for function in (nn.GELU(), nn.GELU(approximate="tanh"), F.relu):
        torch.testing.assert_close(activate(function, linear, x), function(linear(x)))
    torch.testing.assert_close(add_residual(linear, linear(x), residual), linear(x) + residual)
    assert torch.equal(residual, before)


def test_memory(linear):
    x, residual = torch.randn(3, 5), torch.randn(3, 7)
    with torch.no_grad():
        y = linear(x)
        assert overwritable(linear, y)
        assert add_residual(linear, y, residual).data_ptr() == y.data_ptr()
    y = linear(x)
    assert not overwritable(linear, y)
    assert add_residual(linear, y, residual).data_ptr() != y.data_ptr()


@torch.no_grad()
def test_a_residual_of_another_dtype_promotes(linear):
    """As under autocast on CUDA, where the LayerNorms before it give float32."""
    y = linear(torch.randn(3, 5)).bfloat16()
    assert add_residual(linear, y, torch.randn(3, 7)).dtype == torch.float32


@torch.no_grad()
def test_what_others_may_hold_is_left_alone(linear):
    class Adapted(nn.Linear):
        """A subclass may return what it keeps."""

    y = linear(torch.randn(3, 5))
    assert not overwritable(Adapted(5, 7), y)
    everywhere = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert not overwritable(linear, y)
    everywhere.remove()
    linear.register_forward_hook(lambda *args: None)
    assert not overwritable(linear, y)


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
