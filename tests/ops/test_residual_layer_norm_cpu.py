"""What only the native kernels have: borders between their regimes, vectors of random numbers, parts of gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders_fast import _dropout, _native, use_backend
from encoders_fast.ops import residual_layer_norm
from tests.closeness import assert_as_good_as, relative_error

pytestmark = pytest.mark.skipif(_native.missing is not None, reason=f"no native library: {_native.missing}")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
STATE = torch.tensor([-(2**62) - 5, 2**63 - 3])  # the halves of both have their uppermost bits set


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    with use_backend("cpu"):
        yield
    torch.use_deterministic_algorithms(False)


def inputs(rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, width), (rows, width), (width,), (width,))
    return [(torch.randn(shape, generator=generator) + 0.5).to(dtype).requires_grad_() for shape in shapes]


def gradients(tensors: list[Tensor], dropout_p: float = 0.0) -> list[Tensor]:
    y, s = residual_layer_norm(*tensors, 1e-5, dropout_p, STATE)
    dy, ds = (t.detach().flip(0) for t in tensors[:2])
    return [y, s, *torch.autograd.grad([y, s], tensors, [dy, ds])]


# Results are streamed beyond 4 MiB where their rows are whole cache lines, and stored where they are not; 33 rows are
# two parts of the parameters' gradients, and 4097 rows have parts of 33, where 4096 have parts of 32.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8200, 256), (8200, 257), (33, 48), (31, 48), (4096, 8), (4097, 8)], ids=str)
def test_regimes(size, dtype):
    tensors = inputs(*size, dtype)
    results = gradients(tensors)

    def plain(with_dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.detach().to(with_dtype).requires_grad_() for t in tensors]
        s = leaves[0] + leaves[1]
        y = F.layer_norm(s, s.shape[-1:], leaves[2], leaves[3], 1e-5)
        dy, ds = (t.detach().flip(0) for t in leaves[:2])
        return [y, s, *torch.autograd.grad([y, s], leaves, [dy, ds])]

    for actual, same_dtype, exact in zip(results, plain(dtype), plain(torch.float64), strict=True):
        assert_as_good_as(actual, same_dtype, exact)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(dtype, dropout_p):
    tensors = inputs(601, 130, dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(gradients(tensors, dropout_p))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


# Widths around a batch of random numbers, which is four vectors: 16, 32 or 64 elements; odd ones begin inside a block.
@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 31, 63, 64, 65, 130])
def test_masks_are_those_of_the_definition(width):
    x, residual = torch.ones(11, width), torch.zeros(11, width)
    weight, bias = torch.ones(width), torch.zeros(width)
    # At 2**-33 and at 1 - 2**-33 the threshold is rounded to 0 and to 2**32.
    for dropout_p in (0.3, 2**-33, 2**-32, 1 - 2**-33, 1.0):
        s = residual_layer_norm(x, residual, weight, bias, 1e-5, dropout_p, STATE)[1]
        kept = _dropout.keep(STATE, x.shape, dropout_p)
        assert torch.equal(s, kept * torch.tensor(_dropout.scale(dropout_p) if kept.any() else 0.0))


def test_mean_far_from_zero():
    """Beside a mean of 4096 a sum of squares would have no digit left; half a unit of the mean is 2.4e-4."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 768, generator=generator)
    residual = torch.full((5, 768), 4096.0)
    y, s = residual_layer_norm(x, residual, torch.ones(768), torch.zeros(768))
    assert relative_error(y, F.layer_norm(s.double(), (768,))) < 3e-4


def test_constant_rows_without_eps():
    """A variance of nothing is 0, never below it."""
    x = torch.full((3, 100), 0.1) * torch.tensor([[1.0], [3.0], [1e10]])
    y, s = residual_layer_norm(x, torch.zeros(3, 100), torch.ones(100), torch.ones(100), 1e-12)
    assert torch.equal(s, x)
    torch.testing.assert_close(y[:2], torch.ones(2, 100), atol=1e-2, rtol=0)
    assert y.isfinite().all()
