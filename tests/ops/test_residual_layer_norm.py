"""The op against plain PyTorch in float64, every backend of its table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders_fast import Backend, _dispatch, _dropout, register_backend, use_backend
from encoders_fast.ops import residual_layer_norm
from tests.closeness import assert_as_good_as, relative_error

SHAPES = [
    (5,),  # a row without rows around it
    (1, 1, 768),  # one token
    (3, 2),  # the narrowest that has a variance
    (2, 3, 7),  # narrower than a vector of any instruction set
    (4, 16),  # one whole vector of AVX-512
    (2, 9, 33),  # two and one element more: tails; blocks of four random words that span two rows
    (2, 1, 4, 128),  # MobileBERT's narrow width; four dimensions
    (3, 43, 768),  # more rows than threads, and not a multiple of them
    (2, 5, 2560),  # XLM-RoBERTa-XL
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = [row.name for row in _dispatch.tables()["residual_layer_norm"]]
STATE = torch.tensor([42, 2**40 + 7])
EPS = 1e-5


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every new tensor starts as NaN, the kernels' outputs and scratch memory included."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def sample(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal values with a mean, and a loud channel, as activations have them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) + 0.5
    x[..., shape[-1] // 2] *= 8
    return x.to(dtype)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    weight, bias = sample(shape[-1:], dtype, 2) / 2 + 1, sample(shape[-1:], dtype, 3)
    return [sample(shape, dtype, 0), sample(shape, dtype, 1), weight, bias]


def plain(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, dropout_p: float = 0.0, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """What one writes without the op, with the op's mask."""
    s = residual + x * _dropout.keep(STATE, x.shape, dropout_p) * (1 / (1 - dropout_p) if dropout_p < 1 else 0)
    return F.layer_norm(s, s.shape[-1:], weight, bias, eps), s


def needs(backend: str, *args: Tensor) -> None:
    refusals = _dispatch.explain("residual_layer_norm", *args).refusals
    if backend in refusals:
        pytest.skip(f"{backend}: {refusals[backend]}")


@pytest.mark.parametrize("used", ["y", "s", "both"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_backward(backend, shape, dtype, dropout_p, used):
    tensors = inputs(shape, dtype)
    needs(backend, *tensors)
    dy, ds = sample(shape, dtype, 4), sample(shape, dtype, 5)

    def run(function, with_dtype):
        args = [t.to(with_dtype, copy=True).requires_grad_() for t in tensors]
        y, s = function(*args)
        outputs, gradients = {"y": ([y], [dy]), "s": ([s], [ds]), "both": ([y, s], [dy, ds])}[used]
        torch.autograd.backward(outputs, [t.to(with_dtype) for t in gradients])
        return [y, s, *(t.grad for t in args)]

    def ours(*args: Tensor) -> tuple[Tensor, Tensor]:
        return residual_layer_norm(*args, EPS, dropout_p, STATE if dropout_p else None)

    def torchs(*args: Tensor) -> tuple[Tensor, Tensor]:
        return plain(*args, dropout_p)

    with use_backend(backend), _dispatch.record() as calls:
        results = run(ours, dtype)
    # The gradient of s alone needs no kernel.
    assert calls == [("residual_layer_norm", backend)] * (1 if used == "s" else 2)
    for actual, same_dtype, exact in zip(results, run(torchs, dtype), run(torchs, torch.float64), strict=True):
        if exact is None:  # the gradients of weight and bias where y is not used
            assert used == "s"
            assert actual is None
        else:
            assert_as_good_as(actual, same_dtype, exact)
            assert actual.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_are_those_of_the_rounded_sum(backend, dtype):
    """Beside a large mean the rounding of s is most of what varies; y has to describe the s that is handed on."""
    x, residual, weight, bias = inputs((6, 48), dtype)
    needs(backend, x, residual, weight, bias)
    residual = residual + 500
    with use_backend(backend):
        y, s = residual_layer_norm(x, residual, weight, bias)
    assert torch.equal(s, (residual.double() + x.double()).to(dtype))
    wide = (weight.double(), bias.double(), EPS)
    of_rounded = F.layer_norm(s.double(), (48,), *wide)
    of_exact = F.layer_norm(residual.double() + x.double(), (48,), *wide)
    # In float32 the mean beside a deviation of 1 costs some of the digits.
    allowed = torch.finfo(dtype).eps * (1 if dtype != torch.float32 else 500)
    assert relative_error(y, of_rounded) <= allowed
    if dtype != torch.float32:
        assert relative_error(y, of_exact) > 4 * allowed, "the case is not there"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sum_with_dropout_is_rounded_once(backend, dtype):
    x, residual, weight, bias = inputs((40, 48), dtype)
    needs(backend, x, residual, weight, bias)
    with use_backend(backend):
        s = residual_layer_norm(x, residual, weight, bias, EPS, 0.3, STATE)[1]
    kept = _dropout.keep(STATE, x.shape, 0.3)
    once = (residual.double() + x.double() * kept / 0.7).to(dtype)
    twice = residual + (x.double() * kept / 0.7).to(dtype)
    # Float32 in between may turn a rare tie; two roundings differ in many places.
    assert (s != once).float().mean() < 1e-3 < 0.05 < (twice != once).float().mean()


@pytest.mark.parametrize("backend", BACKENDS)
def test_saved_statistics_are_float32(backend):
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        args = inputs((3, 5, 33), dtype)
        refusals = _dispatch.explain("residual_layer_norm", *args).refusals
        if backend in refusals:
            continue
        _, s, mean, rstd = torch.ops.encoders_fast.residual_layer_norm(*args, EPS, 0.0, None, backend)
        assert mean.dtype == rstd.dtype == wide
        assert mean.shape == rstd.shape == (3, 5)
        assert relative_error(mean, s.double().mean(-1)) <= 2 * torch.finfo(wide).eps
        exact = (s.double().var(-1, unbiased=False) + EPS).rsqrt()
        assert relative_error(rstd, exact) <= 2 * torch.finfo(wide).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_gradients_are_summed_in_float32(backend, dtype):
    """Plain PyTorch is no measure here: on a CPU it sums half types in half, and is off by percents at 2048 rows."""
    x, residual, weight, bias = inputs((2048, 48), dtype)
    needs(backend, x, residual, weight, bias)
    leaves = [x, residual, weight.requires_grad_(), bias.requires_grad_()]
    dy = sample((2048, 48), dtype, 4)
    with use_backend(backend):
        y, s = residual_layer_norm(*leaves)
        dweight, dbias = torch.autograd.grad(y, leaves[2:], dy)
    normalized = F.layer_norm(s.double(), (48,), eps=EPS)
    # One rounding to the dtype; float32 itself sums 2048 terms.
    allowed = torch.finfo(dtype).eps * (1 if dtype != torch.float32 else 20)
    assert relative_error(dweight, (dy.double() * normalized).sum(0)) <= allowed
    assert relative_error(dbias, dy.double().sum(0)) <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_everything_and_of_nothing(backend):
    args = inputs((4, 33), torch.float32)
    needs(backend, *args)
    x = args[0].requires_grad_()
    with use_backend(backend):
        y, s = residual_layer_norm(*args, EPS, 1.0, STATE)
        assert torch.equal(s, args[1])
        (y.sum() + s.sum()).backward()
        assert x.grad.eq(0).all()
        unused_state = residual_layer_norm(*args, EPS, 0.0, STATE)
        for with_state, without in zip(unused_state, residual_layer_norm(*args, EPS), strict=True):
            assert torch.equal(with_state, without)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_is_computed_again_in_the_backward_pass(backend):
    """x's gradient is nothing exactly where x was dropped, and no boolean mask is kept in between."""
    args = [t.requires_grad_() for t in inputs((6, 9, 33), torch.float32)]
    needs(backend, *args)
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with use_backend(backend), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y, s = residual_layer_norm(*args, EPS, 0.4, STATE)
    large = [t for t in kept if t.numel() >= s.numel()]
    assert len(large) == 1
    assert large[0].data_ptr() == s.data_ptr()
    torch.autograd.backward([y, s], [sample(s.shape, torch.float32, 4), sample(s.shape, torch.float32, 5)])
    assert torch.equal(args[0].grad != 0, _dropout.keep(STATE, s.shape, 0.4))
    assert (args[1].grad != 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_width_of_one(backend, dtype):
    """Nothing varies: y is the bias, and x's gradient is that of s."""
    args = [t.requires_grad_() for t in inputs((3, 1), dtype)]
    needs(backend, *args)
    ones = torch.ones(3, 1, dtype=dtype)
    with use_backend(backend):
        y, s = residual_layer_norm(*args)
        # rstd is 316 here, and s * rstd and mean * rstd are float32 numbers.
        rounding = 316 * torch.finfo(torch.float32).eps * s.abs().max().item()
        torch.testing.assert_close(y, args[3].expand(3, 1), rtol=torch.finfo(dtype).eps, atol=rounding)
        torch.autograd.backward([y, s], [ones, 2 * ones])
    assert args[0].grad.eq(2).all()
    assert args[3].grad.tolist() == [3]


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_no_rows(backend, dropout_p):
    base, other, weight, bias = inputs((6, 10, 12), torch.float32)
    needs(backend, base, other, weight, bias)
    long = torch.stack([weight, -weight], 1).flatten()
    views = [lambda t: t.transpose(0, 1), lambda t: t[:, ::2], lambda t: t[:1].expand(4, 10, 12), lambda t: t.flip(2)]
    with use_backend(backend):
        for view in views:
            args = [view(base), view(other), long[::2], bias.flip(0)]
            dense = [t.clone(memory_format=torch.contiguous_format) for t in args]
            results = []
            for tensors in (args, dense):
                leaves = [t.detach().requires_grad_() for t in tensors]
                y, s = residual_layer_norm(*leaves, EPS, dropout_p, STATE)
                assert y.is_contiguous()
                assert s.is_contiguous()
                gradients = torch.autograd.grad(y.pow(3).sum() + s.square().sum(), leaves)
                results.append([y, s, *gradients])
                results[-1] += torch.autograd.grad(
                    residual_layer_norm(*leaves, EPS, dropout_p, STATE)[0], leaves, view(base).detach()
                )  # a gradient with strides
            for strided, contiguous in zip(*results, strict=True):
                assert torch.equal(strided, contiguous)
        for shape in ((0, 12), (2, 0, 12)):
            leaves = [base.new_empty(shape), base.new_empty(shape), weight.clone(), bias.clone()]
            leaves = [t.requires_grad_() for t in leaves]
            y, s = residual_layer_norm(*leaves, EPS, dropout_p, STATE)
            (y.sum() + s.sum()).backward()
            assert y.shape == s.shape == leaves[0].grad.shape == leaves[1].grad.shape == shape
            assert leaves[2].grad.tolist() == leaves[3].grad.tolist() == [0] * 12


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_no_backend_sees_an_input_without_rows(dropout_p):
    def never(*args: object) -> None:
        raise AssertionError("called without rows")

    remove = register_backend("residual_layer_norm", Backend("never", lambda key: None, never, never))
    try:
        args = [t.requires_grad_() for t in inputs((0, 12), torch.float32)]
        with _dispatch.record() as calls:
            y, s = residual_layer_norm(*args, EPS, dropout_p, STATE)
            (y.sum() + s.sum()).backward()
        assert calls == [("residual_layer_norm", "never")] * 2
        assert [tuple(t.grad.shape) for t in args] == [(0, 12), (0, 12), (12,), (12,)]
    finally:
        remove()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_independent(backend):
    """Same bits twice and beside other rows, and a NaN stays in its row."""
    x, residual, weight, bias = inputs((7, 33), torch.float32)
    needs(backend, x, residual, weight, bias)
    with use_backend(backend):
        y, _ = residual_layer_norm(x, residual, weight, bias)
        assert torch.equal(y, residual_layer_norm(x, residual, weight, bias)[0])
        assert torch.equal(y[2:3], residual_layer_norm(x[2:3], residual[2:3], weight, bias)[0])
        x[4, 5] = float("nan")
        poisoned, _ = residual_layer_norm(x, residual, weight, bias)
    assert poisoned[4].isnan().all()
    assert torch.equal(poisoned[:4], y[:4])
    assert torch.equal(poisoned[5:], y[5:])


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_some_inputs_need_gradients(backend, dropout_p):
    args = inputs((3, 33), torch.float32)
    needs(backend, *args)

    def gradients(needed: tuple[int, ...]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_(i in needed) for i, t in enumerate(args)]
        with use_backend(backend):
            y, s = residual_layer_norm(*leaves, EPS, dropout_p, STATE)
            return list(torch.autograd.grad(y.pow(3).sum() + s.sum(), [leaves[i] for i in needed]))

    together = gradients((0, 1, 2, 3))
    for needed in ((0,), (1,), (2,), (3,), (1, 2)):
        for i, gradient in zip(needed, gradients(needed), strict=True):
            assert torch.equal(gradient, together[i])


@pytest.mark.parametrize(
    ("x", "residual", "weight", "expected"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float16, torch.float16, torch.float32, torch.float16),
        (torch.bfloat16, torch.float32, torch.float32, torch.float32),  # autocast: a half branch, a float32 stream
        (torch.float32, torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float16, torch.float32),
        (torch.float32, torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float64, torch.float32, torch.float64),
    ],
    ids=str,
)
def test_mixed_dtypes(x, residual, weight, expected):
    """As torch.nn.functional.layer_norm(residual + x) where that takes the mixture, promoted where it does not."""
    args = inputs((4, 9, 24), torch.float32)
    leaves = [t.to(d).requires_grad_() for t, d in zip(args, (x, residual, weight, weight), strict=True)]
    y, s = residual_layer_norm(*leaves)
    assert y.dtype == s.dtype == expected
    y.pow(3).sum().backward()
    assert [t.grad.dtype for t in leaves] == [x, residual, weight, weight]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    exact, _ = plain(*wide)
    exact.pow(3).sum().backward()
    assert relative_error(y, exact) <= max(5e-7, torch.finfo(expected).eps)
    for leaf, right in zip(leaves, wide, strict=True):
        coarsest = max(torch.finfo(d).eps for d in (leaf.dtype, expected))
        assert relative_error(leaf.grad, right.grad) <= max(2e-6, 4 * coarsest)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (3, 2)], ids=str)
def test_gradients_of_gradients(shape, dropout_p):
    args = [t.requires_grad_() for t in inputs(shape, torch.float64)]

    def both(*args: Tensor) -> tuple[Tensor, Tensor]:
        return residual_layer_norm(*args, 1e-2, dropout_p, STATE)

    torch.autograd.gradcheck(both, args, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(both, args)
    for output in (0, 1):
        torch.autograd.gradcheck(lambda *args: both(*args)[output], args)  # noqa: B023


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_gradient_in_float32(backend):
    args = inputs((2, 9, 16), torch.float32)
    needs(backend, *args)

    def penalty(function, dtype):
        x, residual, weight, bias = (t.to(dtype, copy=True).requires_grad_() for t in args)
        y, s = function(x, residual, weight, bias)
        (dx,) = torch.autograd.grad(y.pow(3).sum() + s.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, residual, weight))

    with use_backend(backend):
        results = penalty(lambda *args: residual_layer_norm(*args, EPS, 0.3, STATE), torch.float32)

    def torchs(*args: Tensor) -> tuple[Tensor, Tensor]:
        return plain(*args, 0.3)

    for actual, same_dtype, exact in zip(
        results, penalty(torchs, torch.float32), penalty(torchs, torch.float64), strict=True
    ):
        assert_as_good_as(actual, same_dtype, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_with_strides(backend):
    tensors = inputs((2, 9, 33), torch.float32)
    needs(backend, *tensors)
    states = torch.stack([STATE, STATE + 1], 1)
    with use_backend(backend):
        strided = residual_layer_norm(*tensors, EPS, 0.3, states[:, 0])
        for one, other in zip(strided, residual_layer_norm(*tensors, EPS, 0.3, STATE), strict=True):
            assert torch.equal(one, other)
