"""On a GPU, forward and backward, every backend that runs there, against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import fourier_mixing_layer_norm
from tests.closeness import assert_as_good_as

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or a torch without CUDA"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 128, 768), (1, 509, 96), (3, 33, 31)], ids=str)
@pytest.mark.parametrize("backend", [row.name for row in _dispatch.tables()["fourier_mixing_layer_norm"]])
def test_layer_norm_forward_and_backward(backend, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator).to(dtype) for size in (shape, shape[2:], shape[2:], shape)]

    def run(device: str, with_dtype: torch.dtype, with_backend: str) -> list[torch.Tensor]:
        *args, dy = (t.to(device, with_dtype, copy=True) for t in tensors)
        args = [t.requires_grad_() for t in args]
        with use_backend(with_backend):
            y = fourier_mixing_layer_norm(*args, eps=1e-5)
            y.backward(dy)
        return [y.detach().cpu(), *(t.grad.cpu() for t in args)]

    refusals = _dispatch.explain(fourier_mixing_layer_norm, *(t.cuda() for t in tensors[:3])).refusals
    if backend in refusals:
        pytest.skip(f"{backend}: {refusals[backend]}")
    plain, exact = run("cpu", dtype, "reference"), run("cpu", torch.float64, "reference")
    for ours, same_dtype, right in zip(run("cuda", dtype, backend), plain, exact, strict=True):
        assert_as_good_as(ours, same_dtype, right)
