"""The op against dense attention in float64, every backend of its table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from encoders_fast import _dispatch, _dropout, use_backend
from encoders_fast.ops import BlockSparsePattern, attention_probabilities, block_sparse_attention
from encoders_fast.ops.block_sparse_attention import reference
from tests.closeness import assert_as_good_as, relative_error

BACKENDS = [row.name for row in _dispatch.tables()["block_sparse_attention"]]
MASK = torch.tensor([[[1, 0, 4], [0, 0, 0], [0, 1, 1]], [[0, 2, 1], [1, 1, 1], [0, 0, 1]]])
PATTERNS = {
    "one token": BlockSparsePattern.full(1),
    "one less than a block": BlockSparsePattern.full(15, block=16),
    "a block": BlockSparsePattern.full(16, block=16, causal=True),
    "one more": BlockSparsePattern.full(17, block=16, causal=True),
    "more keys": BlockSparsePattern.full(20, 37, block=16, causal=True),
    "queries without keys": BlockSparsePattern.full(37, 20, block=16, causal=True),
    "a row without blocks": BlockSparsePattern.from_mask(MASK, 40, 33, block=16),
    "evaluation": BlockSparsePattern.big_bird(16 * 12 - 3, block=16, random_blocks=2),
    "training": BlockSparsePattern.big_bird(16 * 11 + 1, block=16, heads=2, random_blocks=2, training=True),
    "causal": BlockSparsePattern.big_bird(190, block=16, heads=2, random_blocks=2, training=True, causal=True),
    "random": BlockSparsePattern.sliding(
        130, block=8, heads=2, window_blocks=5, random_blocks=3, extra_global_tokens=8
    ),
    "blocks of 64": BlockSparsePattern.sliding(321, global_blocks=(0,)),
    # The first row and the first column in two slices; of the padded sample's row the second slice has no key.
    "long lists": BlockSparsePattern.sliding(127, block=4, window_blocks=1, global_blocks=(0,)),
    "blocks of 128": BlockSparsePattern.from_mask(torch.tensor([[0, 3], [1, 1]]), 256, 200, block=128),
}


def sample(pattern: BlockSparsePattern, K: int, dtype: torch.dtype, B: int = 2, H: int = 2) -> list[Tensor]:
    """query, key, value and a gradient, each with a loud head, a loud channel and a loud token.

    Not the same channel in query and key: scores beyond 100 leave one key its weight, and rounding luck decides.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = []
    tokens_of = (pattern.query_tokens, pattern.key_tokens, pattern.key_tokens, pattern.query_tokens)
    for i, tokens in enumerate(tokens_of, start=1):
        x = torch.randn(B, H, tokens, K, generator=generator)
        x[:, -1] *= 2
        x[..., K // i - 1] *= 4
        x[:, :, tokens // 3] += 1
        tensors.append(x.to(dtype))
    return tensors


def padding(tokens: int, B: int = 2) -> Tensor:
    """The first sample is whole; of the second some tokens in between and more than half at the end are padded."""
    real = torch.ones(B, tokens, dtype=torch.bool)
    real[1:, tokens // 5 : tokens // 4], real[1:, (tokens + 1) // 2 :] = False, False
    return real


def needs(backend: str, *args: object) -> None:
    refusals = _dispatch.explain("block_sparse_attention", *args).refusals
    if backend in refusals:
        pytest.skip(f"{backend}: {refusals[backend]}")


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: BlockSparsePattern,
    key_padding_mask: Tensor | None = None,
    query_padding_mask: Tensor | None = None,
    kept: Tensor | None = None,
    dropout_p: float = 0.0,
    head_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The contract in dense plain PyTorch: matrix products in query's dtype, the softmax in at least float32."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ key.mT / math.sqrt(query.shape[3])).to(wide)
    seen = pattern.dense() > 0
    if key_padding_mask is not None:
        seen = seen & key_padding_mask[:, None, None]
    if query_padding_mask is not None:
        seen = seen & query_padding_mask[:, None, :, None]
    scores = (scores + pattern.dense().clamp(min=1).to(wide).log()).masked_fill(~seen, torch.finfo(wide).min)
    none = ~seen.any(-1)
    log_sum_exp = scores.logsumexp(-1).masked_fill(none, float("-inf"))
    p = scores.softmax(-1).masked_fill(none[..., None], 0)
    if kept is not None:
        p = p * kept / (1 - dropout_p)
    out = p.to(query.dtype) @ value
    return out if head_mask is None else out * head_mask.to(out.dtype)[..., None, None], log_sum_exp


def gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    """The two outputs and the gradients of a sum over both; a log-sum-exp of -inf has none."""
    out, log_sum_exp = outputs
    finite = log_sum_exp.where(log_sum_exp.isfinite(), 0)
    loss = (out * dy.to(out.dtype)).sum() + (finite * dy[..., 0]).sum()
    return [out.detach(), finite.detach(), *torch.autograd.grad(loss, inputs)]


def compare(backend: str, pattern: BlockSparsePattern, K: int, dtype: torch.dtype, masked: bool) -> None:
    query, key, value, dy = sample(pattern, K, dtype)
    needs(backend, query, key, value, pattern)
    masks = {}
    if masked:
        masks = {
            "key_padding_mask": padding(pattern.key_tokens),
            "query_padding_mask": padding(pattern.query_tokens),
            "head_mask": torch.tensor([[0.5, -1.25], [0.0, 3.0]]),
        }

    def run(with_dtype: torch.dtype, ours: bool) -> list[Tensor]:
        inputs = [x.to(with_dtype, copy=True).requires_grad_() for x in (query, key, value)]
        if not ours:
            return gradients(dense(*inputs, pattern, **masks), inputs, dy.to(with_dtype))
        with use_backend(backend), _dispatch.record() as calls:
            outputs = block_sparse_attention(*inputs, pattern, return_log_sum_exp=True, **masks)
            results = gradients(outputs, inputs, dy)
        assert calls == [("block_sparse_attention", backend)] * 2
        return results

    exact = run(torch.float64, ours=False)
    for name, ours, plain, right in zip(
        ("out", "log_sum_exp", "dquery", "dkey", "dvalue"), run(dtype, True), run(dtype, False), exact, strict=True
    ):
        assert ours.dtype == plain.dtype
        if name in ("dquery", "dkey") and pattern.key_tokens == 1:
            # A softmax over one key is constant; what is left comes from the log-sum-exp.
            assert relative_error(ours, right) <= max(1e-5, 4 * torch.finfo(dtype).eps)
            continue
        if dtype == torch.float64:
            assert relative_error(ours, right) <= 1e-13
        else:
            # Of one term each, gradients are left to the luck of their roundings: over 60 seeds the errors' ratio is
            # 0.75 in the median, and 4 at most.
            assert_as_good_as(ours, plain, right, factor=2.0 if K > 1 else 6.0)
        assert torch.equal(ours[right == 0], torch.zeros_like(ours[right == 0])), "rows without weight are exact zeros"


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_patterns(backend, name, masked):
    compare(backend, PATTERNS[name], 24, torch.float32, masked)


# The narrowest and the widest of the contract; 40 and 80 are no powers of two.
@pytest.mark.parametrize("K", [16, 40, 64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_widths_and_dtypes(backend, dtype, K):
    compare(backend, PATTERNS["training"], K, dtype, masked=True)


@pytest.mark.parametrize("K", [1, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_narrow_heads(backend, K):
    """Over so few columns nothing rounded cancels out."""
    compare(backend, PATTERNS["more keys"], K, torch.bfloat16, masked=True)


@pytest.mark.parametrize("dropout_p", [0.3, 1.0])
@pytest.mark.parametrize("name", ["training", "causal", "more keys"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_drops_the_elements_that_the_state_says(backend, name, dropout_p):
    pattern = PATTERNS[name]
    tensors = sample(pattern, 16, torch.float64)
    needs(backend, *tensors[:3], pattern)
    B, H, Tq, Tk = 2, 2, pattern.query_tokens, pattern.key_tokens
    state = torch.tensor([1234, -5])
    inputs = [x.requires_grad_() for x in tensors[:3]]
    with use_backend(backend):
        outputs = block_sparse_attention(
            *inputs,
            pattern,
            dropout_p=dropout_p,
            rng_state=state,
            return_log_sum_exp=True,
            key_padding_mask=padding(Tk),
        )
        ours = gradients(outputs, inputs, tensors[3])
    kept = _dropout.keep_elements(state, torch.arange(B * H * Tq * Tk).view(B, H, Tq, Tk), dropout_p)
    scale = dropout_p if dropout_p < 1 else 0.0
    exact = gradients(dense(*inputs, pattern, padding(Tk), None, kept, scale), inputs, tensors[3])
    for actual, right in zip(ours, exact, strict=True):
        if right.norm() == 0:  # everything dropped
            assert torch.equal(actual, right)
        else:
            assert relative_error(actual, right) <= 1e-13


def compare_with_dropout(backend: str, pattern: BlockSparsePattern, dtype: torch.dtype, dropout_p: float) -> None:
    query, key, value, dy = sample(pattern, 24, dtype)
    needs(backend, query, key, value, pattern)
    B, H, Tq, Tk = 2, 2, pattern.query_tokens, pattern.key_tokens
    state = torch.tensor([-1234567890123, 2**62 + 5])
    kept = _dropout.keep_elements(state, torch.arange(B * H * Tq * Tk).view(B, H, Tq, Tk), dropout_p)
    scale = dropout_p if kept.any() else 0.0

    def plain(with_dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(with_dtype).requires_grad_() for x in (query, key, value)]
        outputs = dense(*inputs, pattern, padding(Tk), None, kept, scale)
        return gradients(outputs, inputs, dy.to(with_dtype))

    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    options = {"dropout_p": dropout_p, "rng_state": state, "key_padding_mask": padding(Tk)}
    with use_backend(backend):
        outputs = block_sparse_attention(*inputs, pattern, return_log_sum_exp=True, **options)
        ours = gradients(outputs, inputs, dy)
    for actual, same_dtype, exact in zip(ours, plain(dtype), plain(torch.float64), strict=True):
        if exact.norm() == 0:  # everything dropped
            assert torch.equal(actual, same_dtype)
        else:
            assert_as_good_as(actual, same_dtype, exact)


# Four elements of one random block are of two rows where Tk is odd. Blocks are smaller than tiles, and larger.
@pytest.mark.parametrize(
    ("name", "dropout_p"),
    [("long lists", 0.3), ("queries without keys", 0.3), ("queries without keys", 1.0), ("blocks of 128", 0.3)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_in_float32(backend, name, dropout_p):
    compare_with_dropout(backend, PATTERNS[name], torch.float32, dropout_p)


@pytest.mark.parametrize("backend", BACKENDS)
def test_head_mask(backend):
    pattern = PATTERNS["evaluation"]
    query, key, value, dy = sample(pattern, 16, torch.float32)
    needs(backend, query, key, value, pattern)
    with use_backend(backend):
        plain = block_sparse_attention(query, key, value, pattern)
        for shape in ((2,), (2, 2)):
            mask = torch.rand(shape).requires_grad_()
            out = block_sparse_attention(query, key, value, pattern, head_mask=mask)
            torch.testing.assert_close(
                block_sparse_attention(query, key, value, pattern, head_mask=mask.detach()), out.detach()
            )
            assert torch.equal(out, plain * mask.detach()[..., None, None])
            out.backward(dy)
            assert torch.allclose(mask.grad, (plain * dy).sum((2, 3)).sum_to_size(shape), rtol=1e-4)
        off = block_sparse_attention(query, key, value, pattern, head_mask=torch.tensor([True, False]))
        assert torch.equal(off[:, 0], plain[:, 0])
        assert not off[:, 1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_of_numbers_and_scale(backend):
    pattern = PATTERNS["training"]
    query, key, value, _ = sample(pattern, 16, torch.float32)
    needs(backend, query, key, value, pattern)
    real = padding(pattern.key_tokens)
    with use_backend(backend):
        out = block_sparse_attention(query, key, value, pattern, key_padding_mask=real)
        for dtype in (torch.int64, torch.float32):
            again = block_sparse_attention(query, key, value, pattern, key_padding_mask=real.to(dtype))
            assert torch.equal(out, again)
        scaled = block_sparse_attention(query * 8, key, value, pattern, key_padding_mask=real, scale=1 / 32)
        assert torch.equal(out, scaled)
        # What stands in a padded place does not matter.
        loud = torch.where(real[:, None, :, None], key, 100.0), torch.where(real[:, None, :, None], value, 100.0)
        assert torch.equal(out, block_sparse_attention(query, *loud, pattern, key_padding_mask=real))
        nothing = block_sparse_attention(
            query, key, value, pattern, key_padding_mask=torch.zeros_like(real), return_log_sum_exp=True
        )
        assert not nothing[0].any()
        assert nothing[1].isneginf().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_empty_batches(backend):
    pattern = PATTERNS["random"]
    query, key, value, dy = sample(pattern, 16, torch.float32)
    needs(backend, query, key, value, pattern)
    with use_backend(backend):
        out = block_sparse_attention(query, key, value, pattern)
        assert out.transpose(1, 2).is_contiguous()
        for layout in (
            lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),  # a projection's
            lambda x: x.mT.contiguous().mT,
            lambda x: torch.cat((x, x), -1)[..., :16],
        ):
            inputs = [layout(x).requires_grad_() for x in (query, key, value)]
            again = block_sparse_attention(*inputs, pattern)
            assert relative_error(again, out) <= 1e-6
            gradients = torch.autograd.grad(again, inputs, layout(dy))
            assert all(x.isfinite().all() and x.any() and x.transpose(1, 2).is_contiguous() for x in gradients)
        inputs = [x[:0].clone().requires_grad_() for x in (query, key, value)]
        empty, log_sum_exp = block_sparse_attention(*inputs, pattern, return_log_sum_exp=True)
        empty.sum().backward()
        assert empty.stride() == out.stride()
        assert empty.shape == inputs[0].grad.shape == (0, 2, 130, 16)
        assert log_sum_exp.shape == (0, 2, 130)


@pytest.mark.parametrize("backend", BACKENDS)
def test_heads_of_a_projection_are_split_and_joined_without_a_copy(backend):
    """[B, T, H * K] to [B, T, H * K], and gradients that a projection's own backward pass takes as they are."""
    pattern = PATTERNS["training"]
    (B, H, T, K), aten = (2, 2, pattern.query_tokens, 8), torch.ops.aten
    projected = [torch.randn(B, T, H * K, requires_grad=True) for _ in range(3)]
    needs(backend, *(x.unflatten(2, (H, K)).transpose(1, 2) for x in projected), pattern)
    copies: list[object] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (aten.clone.default, aten.copy_.default, aten._to_copy.default):
                copies.append(func)
            return func(*args, **(kwargs or {}))

    query, key, value = (x.unflatten(2, (H, K)).transpose(1, 2) for x in projected)
    with use_backend(backend):
        out = block_sparse_attention(query, key, value, pattern)
        with Watch():
            joined = out.transpose(1, 2).flatten(2)
        gradients = torch.autograd.grad(out, (query, key, value), torch.ones_like(out))
        with Watch():
            flat = [x.transpose(1, 2).flatten(2) for x in gradients]
    assert joined.is_contiguous()
    assert all(x.is_contiguous() for x in flat)
    assert not copies


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_inputs_give_equal_bits(backend):
    pattern = PATTERNS["training"]
    tensors = sample(pattern, 32, torch.float32)
    needs(backend, *tensors[:3], pattern)

    def run() -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in tensors[:3]]
        with use_backend(backend):
            return gradients(block_sparse_attention(*inputs, pattern, return_log_sum_exp=True), inputs, tensors[3])

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("name", ["training", "queries without keys", "causal"])
def test_reference_in_parts_of_any_size(name, monkeypatch):
    pattern = PATTERNS[name]
    query, key, value, dy = (x.double() for x in sample(pattern, 16, torch.float64))
    inputs = [x.requires_grad_() for x in (query, key, value)]
    results = []
    for elements in (1, 60_000, 1 << 40):
        monkeypatch.setattr(reference, "ELEMENTS", elements)
        with use_backend("reference"):
            outputs = block_sparse_attention(*inputs, pattern, return_log_sum_exp=True)
            results.append(gradients(outputs, inputs, dy))
    for other in results[1:]:
        assert all(relative_error(a, b) <= 1e-13 for a, b in zip(other, results[0], strict=True))


def test_probabilities_are_those_of_the_op():
    for name in ("training", "queries without keys", "a row without blocks"):
        pattern = PATTERNS[name]
        query, key, value, _ = sample(pattern, 16, torch.float64)
        masks = {
            "key_padding_mask": padding(pattern.key_tokens),
            "query_padding_mask": padding(pattern.query_tokens),
        }
        p = attention_probabilities(query, key, pattern, **masks, scale=0.3)
        out, log_sum_exp = block_sparse_attention(
            query, key, value, pattern, **masks, scale=0.3, return_log_sum_exp=True
        )
        assert relative_error(p @ value, out) <= 1e-14
        assert torch.allclose(p.sum(-1), log_sum_exp.isfinite().double(), atol=1e-14)
    single = attention_probabilities(query, key, pattern, **masks, scale=0.3, sum_duplicates=False)
    assert torch.equal(single * pattern.dense().clamp(min=1), p)
    assert attention_probabilities(query.bfloat16(), key.bfloat16(), pattern).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tensor_of_tokens_times_tokens(backend):
    """Global rows included, forward and backward, with a mask and log-sum-exp: all tensors stay linear in T."""
    T, K = 4096, 16
    pattern = BlockSparsePattern.big_bird(T, heads=1, training=True)
    query, key, value = (torch.randn(1, 1, T, K) for _ in range(3))
    needs(backend, query, key, value, pattern)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // tensor.element_size())
            return result

    inputs = [x.requires_grad_() for x in (query, key, value)]
    with use_backend(backend), Watch():
        out, log_sum_exp = block_sparse_attention(
            *inputs, pattern, key_padding_mask=padding(T, 1), return_log_sum_exp=True
        )
        torch.autograd.grad(out.sum() + log_sum_exp.sum(), inputs)
    assert largest <= reference.ELEMENTS < T * T / 8
