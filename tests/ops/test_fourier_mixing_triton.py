"""What the Triton backend does at sizes that are too long for the interpreter, made to happen at small ones."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from encoders_fast import use_backend
from encoders_fast.ops import _triton, fourier_mixing, fourier_mixing_layer_norm
from encoders_fast.ops.fourier_mixing import reference, triton_plans
from tests.closeness import assert_as_good_as

interpreted = pytest.mark.skipif(not _triton.INTERPRETED, reason="for the interpreter: TRITON_INTERPRET=1")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture
def short(monkeypatch):
    """Matrices are looked up, and rows too wide for one program, from 8 and 16 values on."""
    from encoders_fast.ops.fourier_mixing import triton

    monkeypatch.setattr(triton_plans, "LONGEST_STORED", 8)
    monkeypatch.setattr(triton, "WHOLE", 16)
    triton_plans.plan.cache_clear()
    yield
    triton_plans.plan.cache_clear()


def sample(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.25


@interpreted
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 37, 70), (1, 6, 97)], ids=str)
def test_primes_and_wide_rows(short, shape, dtype, keep):
    x, dy = sample(*shape).to(dtype), sample(*shape, seed=1).to(dtype)
    weight, bias = sample(shape[2], seed=2).to(dtype), sample(shape[2], seed=3).to(dtype)

    def run(backend: str, wide: torch.dtype) -> list[torch.Tensor]:
        args = [t.to(wide, copy=True).requires_grad_(keep) for t in (x, weight, bias)]
        with use_backend(backend):
            y = fourier_mixing_layer_norm(*args, eps=1e-5)
            if keep:
                y.backward(dy.to(wide))
        return [y.detach(), *(t.grad for t in args if keep)]

    for ours, plain, exact in zip(
        run("triton", dtype), run("reference", dtype), run("reference", torch.float64), strict=True
    ):
        # Many terms in one sum, where plain PyTorch's transform has few.
        assert_as_good_as(ours, plain, exact, 3)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("T", "N1", "launched"),
    [
        (84, 2, ["_tokens_first", "_tokens_second"]),
        (84, 7, ["_tokens_first", "_tokens_second"]),
        (84, 28, ["_tokens_first", "_tokens_second"]),
        (84, 84, ["_tokens_first"]),
        (96, 3, ["_tokens_in_two"]),
        (96, 6, ["_tokens_in_two"]),
        (176, 11, ["_tokens_in_two"]),
    ],
)
def test_every_split_of_the_tokens_is_the_transform(monkeypatch, T, N1, launched, dtype):
    from encoders_fast.ops.fourier_mixing import triton

    launch, names = triton.launch, []

    def recorded(device, kernel, *args, **constants):
        names.append(kernel.__name__)
        launch(device, kernel, *args, **constants)

    monkeypatch.setattr(triton, "split_tokens", lambda T, tf32: (N1, T // N1))
    monkeypatch.setattr(triton, "launch", recorded)
    x = sample(2, T, 37).to(dtype)
    with use_backend("triton"):
        y = fourier_mixing(x)
        assert names[:-1] == launched
        assert torch.equal(y, fourier_mixing(x))
    exact = reference.fourier_mixing(x.double(), "backward")
    assert_as_good_as(y, reference.fourier_mixing(x, "backward"), exact)


@interpreted
def test_variance_beside_a_large_mean():
    x = sample(1, 8, 64) / 8
    x[0, :, 0] += 3000  # a column: its transform over the width is constant along every row
    weight, bias = sample(64, seed=1), sample(64, seed=2)
    args = (1e-12, "backward", False)
    exact = reference.fourier_mixing_layer_norm(x.double(), weight.double(), bias.double(), *args)[0]
    with use_backend("triton"):
        y = fourier_mixing_layer_norm(x, weight, bias)
    assert_as_good_as(y, reference.fourier_mixing_layer_norm(x, weight, bias, *args)[0], exact)


LENGTHS = [*range(1, 600), 1000, 1021, 1024, 4093, 4096, 9409, 16127, 16381, 16382, 16384]


def test_plans_stay_small():
    device = torch.device("cpu")
    for T in LENGTHS:
        for tf32 in (False, True):
            N1, N2 = triton_plans.split_tokens(T, tf32)
            assert N1 * N2 == T
            made = triton_plans.plan.__wrapped__(N1, N2, device, tf32)
            assert sum(part.nbytes for part in (made.first, made.twiddle, made.second)) <= 1.25 * 2**20


def test_rows_that_are_split_fit_a_program():
    for D in LENGTHS:
        N1, N2 = triton_plans.split_width(D)
        assert N1 * N2 == D
        assert N2 == 1 or (N2 in (16, 32, 64) and N1 <= 128)
    assert [triton_plans.split_width(D)[1] > 1 for D in (512, 768, 1000, 1024)] == [True, True, False, True]


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_nan_as_a_gpu_has_it(dtype):
    """All of its bits but the sign's are ones, and rounding to TF32 would carry over into that."""
    x = sample(1, 16, 32)
    x.view(torch.int32)[0, 3, 5] = 0x7FFFFFFF
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with use_backend("triton"):
            assert fourier_mixing(x.to(dtype)).isnan().all()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
