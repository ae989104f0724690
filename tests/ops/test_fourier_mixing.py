"""The op against its float64 reference, every backend of its tables.

Shapes sit at the borders of the CPU kernel: lanes are 4, 8 or 16, a group of columns or rows is twice as wide, widths
that are a multiple of the lanes take another path over the width, and lengths with a prime factor above 7 another
transform.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import fourier_mixing, fourier_mixing_layer_norm
from encoders_fast.ops.fourier_mixing import reference
from tests.closeness import assert_as_good_as, relative_error

SHAPES = [
    (1, 1, 2),  # no token but one
    (2, 3, 1),  # a width of one
    (1, 2, 2),
    (2, 7, 5),  # narrower than any vector
    (3, 8, 16),  # one whole vector
    (2, 15, 32),  # two, odd length
    (2, 16, 33),  # one column more
    (1, 33, 31),
    (1, 34, 64),  # more than a group of rows; two groups of columns and one column
    (5, 12, 48),  # three vectors: a mirrored entry that shares the middle; more samples than threads
    (2, 30, 105),  # 2 3 5 and 3 5 7
    (1, 11, 13),  # primes above 7
    (2, 26, 176),  # 2 13, and 16 11: Bluestein inside the path for whole vectors
    (1, 509, 96),
    (1, 128, 768),
    (2, 500, 24),
    (1, 4096, 16),  # all passes of the longest common length
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = [row.name for row in _dispatch.tables()["fourier_mixing"]]
BACKENDS_LAYER_NORM = [row.name for row in _dispatch.tables()["fourier_mixing_layer_norm"]]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every new tensor starts as NaN, the kernels' outputs and scratch memory included."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def sample(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal values with a mean, a loud channel and a loud token, as activations have them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x[..., shape[-1] // 2] *= 8
    x[:, shape[1] // 3] += 2
    return x.to(dtype)


def parameters(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (1 + torch.randn(width, generator=generator) / 2).to(dtype), torch.randn(width, generator=generator).to(
        dtype
    )


def needs(op: str, backend: str, *args: Tensor) -> None:
    refusals = _dispatch.explain(op, *args).refusals
    if backend in refusals:
        pytest.skip(f"{backend}: {refusals[backend]}")


@pytest.mark.parametrize("norm", ["backward", "ortho"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mixing(backend, shape, dtype, norm):
    x = sample(shape, dtype)
    if norm == "backward" and dtype == torch.float16:
        x = x / 64  # sums stay below float16's largest number
    needs("fourier_mixing", backend, x)
    with use_backend(backend), _dispatch.record() as calls:
        y = fourier_mixing(x, norm)
    assert calls == [("fourier_mixing", backend)]
    exact = reference.fourier_mixing(x.double(), norm)
    assert_as_good_as(y, reference.fourier_mixing(x, norm), exact)
    if dtype == torch.float32:
        assert relative_error(y, exact) <= 5e-7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[2] > 2], ids=str)
@pytest.mark.parametrize("backend", BACKENDS_LAYER_NORM)
def test_layer_norm_forward_and_backward(backend, shape, dtype):
    x, (weight, bias) = sample(shape, dtype), parameters(shape[2], dtype)
    needs("fourier_mixing_layer_norm", backend, x, weight, bias)
    dy = sample(shape, dtype, seed=2)

    def run(with_dtype, with_backend):
        args = [t.to(with_dtype, copy=True).requires_grad_() for t in (x, weight, bias)]
        with use_backend(with_backend), _dispatch.record() as calls:
            y = fourier_mixing_layer_norm(*args, eps=1e-5)
            y.backward(dy.to(with_dtype))
        assert calls == [("fourier_mixing_layer_norm", with_backend)] * 2
        return y.detach(), *(t.grad for t in args)

    ours, plain, exact = run(dtype, backend), run(dtype, "reference"), run(torch.float64, "reference")
    # A prime above 7 takes two longer transforms instead of one, and each rounds: on average over 60 samples of
    # (1, 33, 31), on the baseline instruction set, that makes 1.7 times plain's error.
    factor = 3 if any(size % prime == 0 for size in shape[1:] for prime in (11, 13, 17, 31, 509)) else 2
    for actual, same_dtype, right in zip(ours, plain, exact, strict=True):
        # Half types: the reference keeps `normalized` in the same dtype, and both round every output once.
        assert_as_good_as(actual, same_dtype, right, factor)
    with use_backend(backend), torch.no_grad():
        assert torch.equal(fourier_mixing_layer_norm(x, weight, bias, eps=1e-5), ours[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_the_map_itself(backend):
    x = sample((2, 12, 20), torch.float32).requires_grad_()
    needs("fourier_mixing", backend, x)
    dy = sample((2, 12, 20), torch.float32, seed=3)
    with use_backend(backend):
        y = fourier_mixing(x)
    with _dispatch.record() as calls:
        y.backward(dy.expand_as(y))  # outside of use_backend: the graph remembers
    assert calls == [("fourier_mixing", backend)]
    exact = torch.autograd.functional.vjp(lambda x: reference.fourier_mixing(x, "backward"), x.double(), dy.double())[1]
    assert relative_error(x.grad, exact) <= 5e-7


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 5, 7), (2, 1, 3)], ids=str)
def test_gradients_of_gradients(shape):
    x = sample(shape, torch.float64).requires_grad_()
    weight, bias = (t.requires_grad_() for t in parameters(shape[2], torch.float64))
    for norm in ("backward", "ortho"):
        torch.autograd.gradcheck(lambda x: fourier_mixing(x, norm), x, check_forward_ad=True)  # noqa: B023
        torch.autograd.gradgradcheck(lambda x: fourier_mixing(x, norm), x)  # noqa: B023

    def layer_norm(*args: Tensor) -> Tensor:
        return fourier_mixing_layer_norm(*args, eps=1e-2)

    torch.autograd.gradcheck(layer_norm, (x, weight, bias), check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(layer_norm, (x, weight, bias))


@pytest.mark.parametrize("backend", BACKENDS_LAYER_NORM)
def test_second_gradient_in_float32(backend):
    args = [sample((2, 9, 16), torch.float32), *parameters(16, torch.float32)]
    needs("fourier_mixing_layer_norm", backend, *args)

    def penalty(dtype, with_backend):
        x, weight, bias = (t.to(dtype, copy=True).requires_grad_() for t in args)
        with use_backend(with_backend):
            y = fourier_mixing_layer_norm(x, weight, bias, eps=1e-5)
            (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), (x, weight))

    for ours, plain, exact in zip(
        penalty(torch.float32, backend),
        penalty(torch.float32, "reference"),
        penalty(torch.float64, "reference"),
        strict=True,
    ):
        assert_as_good_as(ours, plain, exact)


@pytest.mark.parametrize("offset", [30.0, 3000.0])
def test_variance_beside_a_large_mean(offset):
    """Rows whose mean is far above their deviation: one pass over squares alone would lose it."""
    needs("fourier_mixing", "cpu", torch.zeros(1, 1, 1))
    x = torch.zeros(1, 8, 64)
    x[0, :, 0] = offset  # a column: its transform over the width is constant along every row
    x += sample((1, 8, 64), torch.float32) / 8
    weight, bias = parameters(64, torch.float32)
    args = (weight, bias, 1e-12, "backward", False)
    exact = reference.fourier_mixing_layer_norm(x.double(), weight.double(), bias.double(), *args[2:])[0]
    mixed = x.double() + reference.fourier_mixing(x.double(), "backward")
    assert (mixed.mean(-1).square() > 10 * mixed.var(-1)).any(), "the case is not there"
    with use_backend("cpu"):
        y = fourier_mixing_layer_norm(x, weight, bias)
    assert_as_good_as(y, reference.fourier_mixing_layer_norm(x, *args)[0], exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_empty_batches(backend):
    base = sample((3, 10, 12), torch.float32)
    needs("fourier_mixing", backend, base)
    weight, bias = parameters(24, torch.float32)
    with use_backend(backend):
        for view in (base.transpose(1, 2), base[:, ::2], base[:, 1:, :7], base[:1].expand(4, 10, 12), base.flip(1)):
            y = fourier_mixing(view)
            assert relative_error(y, fourier_mixing(view.contiguous())) <= 5e-7
            assert y.is_contiguous()
        every_other = fourier_mixing_layer_norm(base, weight[::2], bias[::2])
        assert torch.equal(every_other, fourier_mixing_layer_norm(base, weight[::2].clone(), bias[::2].clone()))
        empty = base[:0].clone().requires_grad_()
        y = fourier_mixing_layer_norm(empty, weight[:12].clone().requires_grad_(), bias[:12])
        y.sum().backward()
        assert fourier_mixing(empty).shape == y.shape == empty.grad.shape == (0, 10, 12)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_samples_are_independent_of_batch_and_threads(batch):
    """Same bits alone or in a batch, on one thread or two, and a NaN stays in its sample."""
    needs("fourier_mixing", "cpu", torch.zeros(1, 1, 1))
    x, (weight, bias) = sample((batch, 65, 300), torch.float32), parameters(300, torch.float32)
    threads = torch.get_num_threads()
    with use_backend("cpu"):
        together = fourier_mixing_layer_norm(x, weight, bias)
        assert torch.equal(together, fourier_mixing_layer_norm(x, weight, bias))
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert torch.equal(together, fourier_mixing_layer_norm(x, weight, bias))
        finally:
            torch.set_num_threads(threads)
        for b in range(batch):
            assert torch.equal(together[b : b + 1], fourier_mixing_layer_norm(x[b : b + 1], weight, bias))
        x[-1, 3, 4] = float("nan")
        poisoned = fourier_mixing_layer_norm(x, weight, bias)
        assert torch.equal(poisoned[:-1], together[:-1])
        assert poisoned[-1].isnan().all()


def test_float16_sum_beyond_its_range():
    """The sum before the LayerNorm exceeds 65504 and is not rounded to float16."""
    x, (weight, bias) = sample((1, 512, 64), torch.float16) + 20, parameters(64, torch.float16)
    exact = reference.fourier_mixing_layer_norm(x.double(), weight.double(), bias.double(), 1e-12, "backward", False)[0]
    assert reference.fourier_mixing(x.double(), "backward").abs().max() > 65504
    y = fourier_mixing_layer_norm(x, weight, bias)
    assert relative_error(y, exact) <= torch.finfo(torch.float16).eps


@pytest.mark.parametrize(
    ("x", "weight", "expected"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float16, torch.float32, torch.float16),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
    ids=str,
)
def test_mixed_dtypes(x, weight, expected):
    """As torch.nn.functional.layer_norm where that takes the mixture, promoted where it does not."""
    args = [sample((2, 9, 24), x), *(t.to(weight).requires_grad_() for t in parameters(24, torch.float32))]
    y = fourier_mixing_layer_norm(*args)
    assert y.dtype == expected
    y.sum().backward()
    assert args[1].grad.dtype == weight
    exact = fourier_mixing_layer_norm(*(t.detach().double() for t in args))
    assert relative_error(y, exact) <= max(5e-7, torch.finfo(expected).eps)


def test_workspace_is_half_a_spectrum():
    """Beside the output: one half spectrum for every thread that has a sample, rounded up to whole vectors."""
    needs("fourier_mixing", "cpu", torch.zeros(1, 1, 1))
    T, D, threads = 512, 768, torch.get_num_threads()
    for batch in (1, 8):
        x = sample((batch, T, D), torch.float32)
        with torch.profiler.profile(profile_memory=True) as profile, use_backend("cpu"):
            fourier_mixing(x)
        allocated = sum(event.self_cpu_memory_usage for event in profile.key_averages() if "empty" in event.key)
        spectra = min(batch, threads) * (T // 2 + 1) * (D // 2 + 1) * 8
        assert allocated - x.nbytes <= 1.1 * spectra + threads * 24 * 1024
        if batch >= 2 * threads:
            assert allocated - x.nbytes <= batch * (T // 2 + 1) * (D // 2 + 1) * 8
