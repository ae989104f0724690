"""packed_linear against plain PyTorch in float64, every backend of its table, and the store of packed weights."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders_fast import _dispatch, explain, use_backend
from encoders_fast.ops import clear_packed, packed_bytes, packed_linear, packed_linears
from encoders_fast.ops.packed_linear import packing
from encoders_fast.ops.packed_linear.checks import ACTIVATIONS
from tests.closeness import assert_as_good_as

# (M, K, N): one row; narrower than a tile; rows of each tile and left over, columns beyond a panel; a K in several
# parts, in float32 (513, 1030) or in both dtypes (4098).
SIZES = [
    (1, 64, 64),
    (3, 2, 5),
    (15, 33, 130),
    (16, 34, 64),
    (113, 96, 65),
    (67, 1030, 70),
    (20, 513, 8),
    (17, 4098, 8),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BACKENDS = [row.name for row in _dispatch.tables()["packed_linear"]]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Every new tensor starts as NaN, and no test finds what another packed."""
    torch.use_deterministic_algorithms(True)
    clear_packed()
    yield
    torch.use_deterministic_algorithms(False)


def inputs(size: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    M, K, N = size
    generator = torch.Generator().manual_seed(0)
    shapes = ((M, K), (N, K), (N,), (M, N))
    x, weight, bias, residual = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [t.to(dtype) for t in (x, weight * K**-0.5, bias, residual)]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    y = F.linear(x, weight, bias)
    if activation != "none":
        y = F.gelu(y, approximate="tanh") if activation == "gelu_tanh" else getattr(F, activation)(y)
    return y if residual is None else y + residual


def needs(backend: str, *args: Tensor) -> None:
    refusals = explain("packed_linear", *args).refusals
    if backend in refusals:
        pytest.skip(f"{backend}: {refusals[backend]}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_calls(backend, size, dtype):
    x, weight, bias, residual = inputs(size, dtype)
    needs(backend, x, weight)
    for activation, b, r in [(name, bias, residual) for name in ACTIVATIONS] + [("gelu", None, None)]:
        with use_backend(backend), _dispatch.record() as calls:
            y = packed_linear(x, weight, b, activation, r)
        assert calls == [("packed_linear", backend)]
        wide = [None if t is None else t.double() for t in (b, r)]
        exact = plain(x.double(), weight.double(), wide[0], activation, wide[1])
        assert_as_good_as(y, plain(x, weight, b, activation, r), exact)
        assert y.is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out_and_of_nan(backend, activation):
    """The tails of the functions, and a NaN beside them."""
    extremes = torch.tensor([float("nan"), 1e36, -1e36])
    x = torch.cat([torch.linspace(-100, 100, 4001), extremes])[:, None]
    weight = torch.ones(1, 1)
    needs(backend, x, weight)
    with use_backend(backend):
        y = packed_linear(x, weight, None, activation)
    exact = plain(x.double(), weight.double(), None, activation, None)
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_weights_at_once(backend, dtype):
    x = torch.randn(2, 9, 32).to(dtype)
    weights = [(torch.randn(n, 32) / 6).to(dtype) for n in (8, 64, 3)]
    biases = [torch.randn(8).to(dtype), None, torch.randn(3).to(dtype)]
    needs(backend, x, weights[0])
    with use_backend(backend):
        for given in (biases, None):
            outputs = packed_linears(x, weights, given)
            for y, weight, bias in zip(outputs, weights, given or [None] * 3, strict=True):
                exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
                assert_as_good_as(y, F.linear(x, weight, bias), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows_keep_nothing(dtype):
    """Either way of packing gives the same bits, and from 512 rows on nothing of it stays."""
    x, weight, bias, residual = inputs((513, 1034, 72), dtype)
    needs("brgemm", x, weight)
    others = [weight, weight[:3].clone(), weight[:65].clone()]
    many = packed_linear(x, weight, bias, "gelu", residual), *packed_linears(x, others, [bias, None, None])
    assert packed_bytes() == 0
    some = [packed_linear(x[r : r + 171], weight, bias, "gelu", residual[r : r + 171]) for r in (0, 171, 342)]
    assert packed_bytes() > 0
    assert torch.equal(torch.cat(some), many[0])
    some = [packed_linears(x[r : r + 171], others, [bias, None, None]) for r in (0, 171, 342)]
    for i, y in enumerate(many[1:]):
        assert torch.equal(torch.cat([outputs[i] for outputs in some]), y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_dimensions_and_no_rows(backend):
    x, weight, bias, residual = inputs((24, 20, 12), torch.float32)
    needs(backend, x, weight)
    with use_backend(backend):
        expected = packed_linear(x, weight, bias, "relu", residual)
        same = packed_linear(
            x.t().contiguous().t(), weight.t().contiguous().t(), bias, "relu", residual.flip(0).flip(0)
        )
        assert torch.equal(same, expected)
        cube = packed_linear(x.view(2, 3, 4, 20), weight, bias, "relu", residual.view(2, 3, 4, 12))
        assert torch.equal(cube, expected.view(2, 3, 4, 12))
        row = packed_linear(x[0], weight, bias, "relu", residual[0])
        torch.testing.assert_close(row, expected[0])
        assert packed_linear(x[:0], weight, bias).shape == (0, 12)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_packed_once_until_the_weight_changes(backend):
    x, weight, bias, _ = inputs((5, 16, 8), torch.float32)
    needs(backend, x, weight)
    with use_backend(backend), torch.no_grad():
        packed_linear(x, weight, bias)
        once = packed_bytes()
        assert once >= weight.nbytes
        packed_linear(x, weight, bias)
        assert packed_bytes() == once
        weight.mul_(2)
        torch.testing.assert_close(packed_linear(x, weight), F.linear(x, weight))
        weight.data = weight.data + 1  # other memory
        torch.testing.assert_close(packed_linear(x, weight), F.linear(x, weight))
        assert packed_bytes() == once
        for change in (lambda w: w.add_(1), lambda w: w.t().mul_(0.5), lambda w: w.copy_(torch.rand_like(w))):
            change(weight.data)  # uncounted
            torch.testing.assert_close(packed_linear(x, weight), F.linear(x, weight))
        assert packed_bytes() == once
        clear_packed()
        assert packed_bytes() == 0
        torch.testing.assert_close(packed_linear(x, weight), F.linear(x, weight))
        other = weight.clone()
        packed_linears(x, [weight, other])
        assert packed_bytes() > once
        del other
        gc.collect()
        assert packed_bytes() == once
        del weight
        gc.collect()
        assert packed_bytes() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (70, 130)])
def test_weights_of_an_average_may_be_put_in_by_their_data(shape, dtype):
    """As evaluation with averaged weights does: the store must not give what it packed before."""
    torch.manual_seed(0)
    first, second = (torch.randn(shape).to(dtype) for _ in range(2))
    weight = torch.empty(shape[::-1], dtype=dtype).t()  # strided
    x = torch.randn(2, shape[1]).to(dtype)
    for values in (first, second, first, first, second):
        weight.data.copy_(values)
        torch.testing.assert_close(packed_linear(x, weight), F.linear(x, values))


def test_a_change_while_packing_is_seen():
    """By another thread, say: what is packed is of the weight as it was before."""
    weight = torch.randn(8, 4)

    def pack(weights):
        copied = weights[0].clone()
        weight.mul_(2)
        return copied

    packing.packed("test", (weight,), pack)
    assert packing.kept("test", (weight,)) is None


@pytest.mark.parametrize("shape", [(128, 512), (768, 768), (3, 40)])
def test_uncounted_changes_of_many_rows_or_columns_are_seen(shape):
    weight = torch.randn(shape)
    before = packing.state_of((weight,))
    for size, dimension in ((shape[0] // 4 + 1, 0), (shape[1] // 8, 1)):
        for start in range(0, shape[dimension] - size + 1, max(1, size // 3)):
            weight.data.narrow(dimension, start, size).add_(1)
            assert packing.state_of((weight,)) != before
            weight.data.narrow(dimension, start, size).sub_(1)
            before = packing.state_of((weight,))


def test_a_fused_optimizer_that_changes_single_rows_is_heeded():
    """It counts nothing in torch 2.13, and the elements that are compared may all be in other rows."""
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 3000), torch.randn(4, 16)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.5, weight_decay=0.0, fused=True)
    layer.weight.register_hook(lambda grad: grad * (torch.arange(3000) == 77)[:, None])
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(packed_linear(x, layer.weight), F.linear(x, layer.weight))
        optimizer.zero_grad()
        F.linear(x, layer.weight).square().sum().backward()
        optimizer.step()


def test_weights_may_be_swapped_and_large_ones_are_not_kept():
    weight, x = nn.Parameter(torch.randn(8, 16)), torch.randn(2, 16)
    large = torch.randn(4097, 1024)
    with torch.no_grad():
        before = packed_linear(x, weight)
        other = nn.Parameter(torch.randn(8, 16))
        torch.utils.swap_tensors(weight, other)
        torch.testing.assert_close(packed_linear(x, weight), F.linear(x, weight))
        torch.testing.assert_close(packed_linear(x, other), before)
        clear_packed()
        rows = torch.randn(3, 1024)
        torch.testing.assert_close(packed_linear(rows, large), F.linear(rows, large), rtol=1e-4, atol=1e-4)
        needs("brgemm", rows, large)
        assert packed_bytes() == 0


def test_rows_that_are_very_far_apart():
    """Beyond what a kernel's addresses reach."""
    wide = torch.empty_strided((70, 16), (1 << 23, 1), dtype=torch.bfloat16).copy_(torch.randn(70, 16))
    weight = torch.randn(5, 16).bfloat16()
    torch.testing.assert_close(packed_linear(wide, weight), F.linear(wide.contiguous(), weight))


def test_packed_weights_are_neither_saved_nor_copied():
    layer = nn.Linear(16, 8)
    before = io.BytesIO()
    torch.save(layer, before)
    with torch.no_grad():
        packed_linear(torch.randn(3, 16), layer.weight)
        once = packed_bytes()
        twin = copy.deepcopy(layer)
        after = io.BytesIO()
        torch.save(layer, after)
        assert abs(len(after.getvalue()) - len(before.getvalue())) < 64
        assert packed_bytes() == once
        packed_linear(torch.randn(3, 16), twin.weight)
        assert packed_bytes() == 2 * once


def test_gradients_are_those_of_the_composition():
    args = [t.requires_grad_() for t in inputs((6, 10, 7), torch.float64)]
    torch.autograd.gradcheck(lambda x, w, b, r: packed_linear(x, w, b, "gelu", r), args)
    assert packed_bytes() == 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_compile_autocast_inference_and_transforms():
    x, weight, bias, _ = inputs((6, 10, 7), torch.float32)

    def call(x: Tensor) -> Tensor:
        return packed_linear(x, weight, bias, "gelu")

    with torch.no_grad():
        expected = F.gelu(F.linear(x, weight, bias))
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
        assert torch.equal(compiled, expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert call(x).dtype == torch.bfloat16
        torch.testing.assert_close(torch.func.vmap(call)(x), expected)
        assert packed_bytes() == 0
        with torch.inference_mode():
            torch.testing.assert_close(call(x), expected)
            inside = weight + 0  # an inference tensor: its changes are not counted
            packed_linear(x, inside)
            inside.add_(1)
            torch.testing.assert_close(packed_linear(x, inside), F.linear(x, inside))
        torch.testing.assert_close(call(x), expected)  # with what was packed in inference mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    x, weight, bias, residual = inputs((113, 96, 65), dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(packed_linear(x.repeat(3, 1), weight, bias, "gelu", residual.repeat(3, 1)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


x, weight = torch.ones(3, 4), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("args", "error", "sentence"),
    [
        ((x, torch.ones(2, 5)), ValueError, r"weight must be \[N, 4\], as x is \(3, 4\); it is \(2, 5\)"),
        ((x, weight, torch.ones(3)), ValueError, r"bias must be \(2,\).* it is \(3,\)"),
        ((x, weight, None, "tanh"), ValueError, "activation must be one of none, relu.* it is 'tanh'"),
        ((x, weight, None, "none", x), ValueError, r"residual must be \(3, 2\).* it is \(3, 4\)"),
        ((x, weight.bfloat16()), TypeError, "weight is torch.bfloat16, x is torch.float32"),
        ((x.int(), weight), TypeError, "x must be float32"),
        ((x, weight.to("meta")), ValueError, "weight is on meta, x is on cpu"),
        ((x, 2.0), TypeError, "weight must be a tensor; it is float"),
        ((torch.ones(()), weight), ValueError, r"x must be \[..., K\]"),
    ],
)
def test_bad_input(args, error, sentence):
    for function in (packed_linear, lambda *args: explain(packed_linear, *args)):
        with pytest.raises(error, match=sentence):
            function(*args)
    with pytest.raises(ValueError, match="as many, and at least one; they are 2 and 1"):
        packed_linears(x, [weight, weight], [None])


def test_sentences():
    assert "float16" in explain(packed_linear, x.half(), weight.half()).refusals["brgemm"]
    odd = explain(packed_linear, torch.ones(3, 5).bfloat16(), torch.ones(2, 5).bfloat16())
    assert odd.chosen in ("mkldnn", "reference")
    assert odd.refusals["brgemm"]
