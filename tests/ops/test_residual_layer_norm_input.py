"""Bad input gets one sentence with the values, of the right type, before any work."""

from __future__ import annotations

import pytest
import torch

from encoders_fast import explain, use_backend
from encoders_fast.ops import residual_layer_norm

x = torch.ones(2, 3, 4)
weight = torch.ones(4)
state = torch.tensor([1, 2])
narrow = torch.ones(2, 3, 0)


@pytest.mark.parametrize(
    ("args", "error", "sentence"),
    [
        ((x, x[:1], weight, weight), ValueError, r"x \(2, 3, 4\) and residual \(1, 3, 4\) differ"),
        ((torch.ones(()), torch.ones(()), weight, weight), ValueError, r"x must be \[..., width\].* its shape is \(\)"),
        ((narrow, narrow, weight, weight), ValueError, r"a width of at least 1; its shape is \(2, 3, 0\)"),
        ((x, x, torch.ones(5), weight), ValueError, r"weight \(5,\) must be \(4,\), the width of x \(2, 3, 4\)"),
        ((x, x, weight, torch.ones(1, 4)), ValueError, r"bias \(1, 4\) must be \(4,\)"),
        ((x.int(), x, weight, weight), TypeError, "x must be float32, bfloat16, float16 or float64; it is torch.int32"),
        ((x, x.long(), weight, weight), TypeError, "residual must be float32.* it is torch.int64"),
        ((x, x, weight.long(), weight), TypeError, "weight must be float32.* it is torch.int64"),
        ((x, x.to_sparse(), weight, weight), TypeError, "residual must be a dense tensor; its layout is"),
        ((x, x.to("meta"), weight, weight), ValueError, "residual is on meta, x is on cpu"),
        ((x, x, weight, weight.to("meta")), ValueError, "bias is on meta, x is on cpu"),
        ((x, x, weight, None), TypeError, "bias must be a tensor; it is NoneType"),
        ((x, 1.0, weight, weight), TypeError, "residual must be a tensor; it is float"),
        ((x, x, weight, weight, -1e-5), ValueError, "eps must not be negative; it is -1e-05"),
        ((x, x, weight, weight, "a"), TypeError, "eps must be a number; it is 'a'"),
        ((x, x, weight, weight, 1e-5, 1.5, state), ValueError, r"dropout_p must be in \[0, 1\]; it is 1.5"),
        ((x, x, weight, weight, 1e-5, 0.1), ValueError, "dropout_p is 0.1, so rng_state is needed; it is None"),
        ((x, x, weight, weight, 1e-5, 0.1, state.int()), TypeError, "rng_state must be int64; it is torch.int32"),
        ((x, x, weight, weight, 1e-5, 0.1, state[:1]), ValueError, r"rng_state must be \[2\].* its shape is \(1,\)"),
        ((x, x, weight, weight, 1e-5, 0.1, state.to("meta")), ValueError, "rng_state is on meta"),
    ],
)  # fmt: skip
def test_bad_input(args, error, sentence):
    with pytest.raises(error, match=sentence):
        residual_layer_norm(*args)
    with pytest.raises(error, match=sentence):
        explain(residual_layer_norm, *args)


def test_unknown_keyword_and_backend():
    with pytest.raises(TypeError, match="dropout"):
        residual_layer_norm(x, x, weight, weight, dropout=0.1)
    with use_backend("cpu"), pytest.raises(NotImplementedError, match="cpu: computes in float32; the input is float64"):
        residual_layer_norm(x.double(), x.double(), weight.double(), weight.double())
