"""What is special in the CPU kernel of block_sparse_attention.

Its borders: vectors have 4, 8 or 16 lanes; blocks of more than 64 tokens are cut into pieces of equal size; 16 such
pieces of a list are in memory at a time; rows and columns of products go by 4; bfloat16 is multiplied in pairs; threads
take heads, and share those that do not divide evenly.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encoders_fast import _dispatch, _dropout, _native, use_backend
from encoders_fast.ops import BlockSparsePattern, block_sparse_attention
from tests.closeness import assert_as_good_as, relative_error
from tests.ops.test_block_sparse_attention import (
    PATTERNS,
    compare,
    compare_with_dropout,
    gradients,
    padding,
    sample,
)

pytestmark = pytest.mark.skipif(_native.missing is not None, reason=f"no native library: {_native.missing}")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every new tensor starts as NaN, the kernels' outputs and scratch memory included."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """Calls set_num_threads, and puts back what was set."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def holes(query_blocks: int, key_blocks: int, heads: int = 1) -> Tensor:
    """Multiplicities of 0 to 3 at random; half of them are 0."""
    generator = torch.Generator().manual_seed(query_blocks)
    return (torch.randint(-3, 4, (heads, query_blocks, key_blocks), generator=generator)).clamp(min=0)


BORDERS = {
    "blocks of 1": (BlockSparsePattern.from_mask(holes(7, 9, heads=2), 7, 9, block=1), 5),
    "blocks of 3, width 1": (BlockSparsePattern.from_mask(holes(7, 7), 19, 20, block=3), 1),
    "blocks of 5, odd width": (BlockSparsePattern.full(23, 17, block=5, causal=True), 15),
    "one lane more": (BlockSparsePattern.from_mask(holes(4, 5), 60, 77, block=17), 17),
    "three vectors": (BlockSparsePattern.from_mask(holes(3, 3), 141, 140, block=48), 48),
    "two pieces, the last ends early": (BlockSparsePattern.full(66, 130, block=65, causal=True), 33),
    "two pieces, the last is empty": (BlockSparsePattern.from_mask(holes(2, 3), 140, 264, block=130), 65),
    "16 panels": (BlockSparsePattern.full(40, 16 * 4, block=4, causal=True), 16),
    "17 panels": (BlockSparsePattern.full(40, 17 * 4 - 1, block=4), 16),
    "33 panels": (BlockSparsePattern.full(9, 33 * 4, block=4, causal=True), 31),
    "a part of which nothing is seen": (BlockSparsePattern.full(70, block=2, causal=True), 8),
}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BORDERS)
def test_borders(name, dtype, masked):
    compare("cpu", *BORDERS[name], dtype, masked)


# The last two are so near to 0 and to 1 that the bound for a random word is rounded to 0 and to 2**32.
@pytest.mark.parametrize("dropout_p", [0.1, 0.7, 1.0, 1e-11, 1 - 1e-11])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["training", "causal", "more keys", "queries without keys", "blocks of 64"])
def test_dropout(name, dtype, dropout_p):
    compare_with_dropout("cpu", PATTERNS[name], dtype, dropout_p)


def test_dropout_at_elements_of_which_four_do_not_fit_32_bits():
    """Element 2**34 is the first of head 4: there the counter's lower word begins again at 0."""
    T, H = 65536, 5
    pattern = BlockSparsePattern.from_mask(torch.eye(T // 64, dtype=torch.int32), T, T)
    state = torch.tensor([3, 4])
    zeros, ones = (torch.full((1, 1, 1, 1), value).expand(1, H, T, 1) for value in (0.0, 1.0))
    with use_backend("cpu"):
        out = block_sparse_attention(zeros, zeros, ones, pattern, dropout_p=0.5, rng_state=state)
    for head, first in ((0, 0), (3, T - 64), (4, 0), (4, T - 64)):
        tokens = torch.arange(first, first + 64)
        elements = (head * T + tokens[:, None]) * T + tokens
        share = _dropout.keep_elements(state, elements, 0.5).double().mean(1) / 0.5
        assert torch.allclose(out[0, head, first : first + 64, 0].double(), share, rtol=1e-6)


@pytest.mark.parametrize(("heads", "K"), [(1, 16), (2, 16), (3, 16), (5, 16), (3, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_of_threads(threads, dtype, heads, K):
    """Heads of their own, shared heads, tiles of global rows cut for the threads, and threads without work. Gradients
    of keys and values are sums over threads: in buffers, or in float32 one of them in the result."""
    pattern = BlockSparsePattern.big_bird(16 * 40 - 3, block=16, heads=heads, random_blocks=2, training=True)
    query, key, value, dy = sample(pattern, K, dtype, B=1, H=heads)

    def run(count: int) -> list[Tensor]:
        threads(count)
        inputs = [x.clone().requires_grad_() for x in (query, key, value)]
        with use_backend("cpu"):
            outputs = block_sparse_attention(*inputs, pattern, return_log_sum_exp=True)
            return gradients(outputs, inputs, dy)

    first = run(1)
    for count in (2, 3, 16):
        again = run(count)
        assert all(torch.equal(a, b) for a, b in zip(again, run(count), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(again[:3], first, strict=False)), "rows do not depend on threads"
        # Sums of float32 in another order, which may round otherwise in the end.
        bound = 3e-7 if dtype == torch.float32 else 1e-3
        assert all(relative_error(a, b) < bound for a, b in zip(again[3:], first[3:], strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_of_a_backward_pass(threads, dtype):
    """Beside its results, of one thread for 4096 tokens of width 64 and of any number of heads: 1 MiB for each of three
    forms of the keys and values, half of that for pairs of bfloat16, 2 MiB for sums that have half types, and 0.7."""
    threads(1)
    pairs = dtype == torch.bfloat16 and _native.instruction_set() == "avx512_bf16"
    most = 3 * (0.5 if pairs else 1) + (0 if dtype == torch.float32 else 2) + 0.7
    shape = (1, 2, 4096, 64)
    query, key, value = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(3))
    with use_backend("cpu"):
        out = block_sparse_attention(query, key, value, BlockSparsePattern.sliding(4096))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            torch.autograd.grad(out, (query, key, value), out.detach())
    events = profile.profiler.kineto_results.events()
    sizes = [event.nbytes() / 2**20 for event in events if event.name() == "[memory]" and event.nbytes() > 0]
    assert len(sizes) >= 4
    assert max(sizes) <= most


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_are_taken_as_they_are(dtype):
    """All layouts give one result, bit for bit: a projection's, a part of a wider one, one head for all, and gradients
    of a sum."""
    pattern = PATTERNS["training"]
    query, key, value, dy = sample(pattern, 24, dtype)
    key, value = key[:, :1].expand_as(key), value[:1].expand_as(value)
    dy = dy[..., :1, :].expand_as(dy)

    def run(layout) -> list[Tensor]:
        inputs = [layout(x).detach().requires_grad_() for x in (query, key, value)]
        with use_backend("cpu"):
            out = block_sparse_attention(*inputs, pattern)
            return [out, *torch.autograd.grad(out, inputs, layout(dy))]

    expected = run(Tensor.contiguous)
    for layout in (
        lambda x: x,
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.cat((x, x, x), -1)[..., 7:31].copy_(x),
        lambda x: x.mT.contiguous().mT,
    ):
        results = run(layout)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    ones = [x.clone().requires_grad_() for x in (query, key, value)]
    with use_backend("cpu"):
        block_sparse_attention(*ones, pattern).sum().backward()  # its gradient has no strides at all
    assert all(x.grad.isfinite().all() for x in ones)


def test_width_of_one_with_a_stride():
    pattern = BlockSparsePattern.full(9, block=4)
    query, key, value, _ = sample(pattern, 1, torch.float32)
    wide = [torch.cat((x, x.new_full((2, 2, 9, 3), torch.nan)), -1)[..., ::4] for x in (query, key, value)]
    with use_backend("cpu"):
        assert torch.equal(block_sparse_attention(*wide, pattern), block_sparse_attention(query, key, value, pattern))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_stands_in_padded_places_is_never_read(dtype):
    pattern = PATTERNS["training"]
    tensors = sample(pattern, 24, dtype)
    real = padding(pattern.query_tokens)
    masks = {"key_padding_mask": real, "query_padding_mask": real}

    def run(fill: float) -> list[Tensor]:
        query, key, value, dy = (x.masked_fill(~real[:, None, :, None], fill) for x in tensors)
        inputs = [x.requires_grad_() for x in (query, key, value)]
        with use_backend("cpu"):
            out = block_sparse_attention(*inputs, pattern, **masks)
            return [out, *torch.autograd.grad(out, inputs, dy)]

    assert all(torch.equal(a, b) for a, b in zip(run(0.0), run(torch.nan), strict=True))


def test_not_a_number_comes_out_where_it_goes_in():
    pattern = BlockSparsePattern.sliding(64, block=8, global_blocks=())
    query, key, value, _ = sample(pattern, 16, torch.float32)
    query[0, 0, 20, 3], query[0, 1, 40, 0], value[1, 0, 30, 5] = torch.nan, torch.inf, torch.nan
    with use_backend("cpu"):
        out, log_sum_exp = block_sparse_attention(query, key, value, pattern, return_log_sum_exp=True)
    with use_backend("reference"):
        right, right_log_sum_exp = block_sparse_attention(query, key, value, pattern, return_log_sum_exp=True)
    assert torch.equal(out.isnan(), right.isnan())
    assert torch.equal(log_sum_exp.isnan(), right_log_sum_exp.isnan())


@pytest.mark.parametrize("scale", [-0.3, 0.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_and_rising_scores(dtype, scale):
    """Each part of a list has larger scores than all before it, or smaller ones where the scale is negative; at the
    scale of 3 those before weigh nothing any more."""
    T, K = 640, 8
    pattern = BlockSparsePattern.full(T, block=8, causal=True)
    generator = torch.Generator().manual_seed(0)
    query, key, value, dy = (torch.randn(1, 2, T, K, generator=generator) for _ in range(4))
    query[..., 0], key[..., 0] = 1, torch.linspace(-40, 40, T)
    query, key, value, dy = (x.to(dtype) for x in (query, key, value, dy))

    def run(with_dtype: torch.dtype, backend: str) -> list[Tensor]:
        inputs = [x.to(with_dtype, copy=True).requires_grad_() for x in (query, key, value)]
        with use_backend(backend):
            outputs = block_sparse_attention(*inputs, pattern, scale=scale, return_log_sum_exp=True)
            return gradients(outputs, inputs, dy.to(with_dtype))

    for ours, plain, exact in zip(
        run(dtype, "cpu"), run(dtype, "reference"), run(torch.float64, "reference"), strict=True
    ):
        if exact.norm() == 0:
            assert not ours.any()
        elif dtype == torch.float32:
            assert_as_good_as(ours, plain, exact)
        else:
            # The reference rounds half types at the end alone; here probabilities are operands of a product.
            assert relative_error(ours, exact) <= 2 * torch.finfo(dtype).eps


def test_refusals():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    refusals = _dispatch.explain("block_sparse_attention", x, x, x, BlockSparsePattern.full(4)).refusals
    assert refusals["cpu"] == "computes in float32; the input is float64"
