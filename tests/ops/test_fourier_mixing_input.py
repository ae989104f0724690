"""Bad input gets one sentence with the values, of the right type, before any work."""

from __future__ import annotations

import pytest
import torch

from encoders_fast import explain
from encoders_fast.ops import fourier_mixing, fourier_mixing_layer_norm

x = torch.ones(2, 3, 4)
weight = torch.ones(4)


@pytest.mark.parametrize(
    ("args", "error", "sentence"),
    [
        ((torch.ones(2, 8),), ValueError, r"x must be \[batch, tokens, width\]; its shape is \(2, 8\)"),
        ((torch.ones(2, 0, 8),), ValueError, r"at least one token and a width of at least 1; its shape is \(2, 0, 8\)"),
        ((torch.ones(2, 8, 0),), ValueError, r"its shape is \(2, 8, 0\)"),
        ((x.long(),), TypeError, "x must be float32, bfloat16, float16 or float64; it is torch.int64"),
        ((x.to(torch.complex64),), TypeError, "it is torch.complex64"),
        ((x.to_sparse(),), TypeError, "x must be a dense tensor; its layout is torch.sparse_coo"),
        (([[[1.0]]],), TypeError, "x must be a tensor; it is list"),
        ((x, "forward"), ValueError, 'norm must be "backward" or "ortho"; it is \'forward\''),
    ],
)
def test_fourier_mixing(args, error, sentence):
    with pytest.raises(error, match=sentence):
        fourier_mixing(*args)
    with pytest.raises(error, match=sentence):
        explain(fourier_mixing, *args)


@pytest.mark.parametrize(
    ("args", "error", "sentence"),
    [
        ((torch.ones(8), weight, weight), ValueError, r"x must be \[batch, tokens, width\]; its shape is \(8,\)"),
        ((x, torch.ones(5), weight), ValueError, r"weight \(5,\) must be \(4,\), the width of x \(2, 3, 4\)"),
        ((x, weight, torch.ones(1, 4)), ValueError, r"bias \(1, 4\) must be \(4,\)"),
        ((x, weight.long(), weight), TypeError, "weight must be float32.* it is torch.int64"),
        ((x.int(), weight, weight), TypeError, "x must be float32.* it is torch.int32"),
        ((x, weight, weight.to("meta")), ValueError, "bias is on meta, x is on cpu"),
        ((x, weight, None), TypeError, "bias must be a tensor; it is NoneType"),
        ((x, weight, weight, -1e-5), ValueError, "eps must not be negative; it is -1e-05"),
        ((x, weight, weight, "a"), TypeError, "eps must be a number; it is 'a'"),
        ((x, weight, weight, float("nan")), ValueError, "eps must not be negative; it is nan"),
    ],
)
def test_fourier_mixing_layer_norm(args, error, sentence):
    with pytest.raises(error, match=sentence):
        fourier_mixing_layer_norm(*args)
    with pytest.raises(error, match=sentence):
        explain(fourier_mixing_layer_norm, *args)
