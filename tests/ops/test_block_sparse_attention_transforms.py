"""What else than an eager call meets the op: compilers, tracers, modes, transforms, autocast, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import BlockSparsePattern, attention_probabilities, block_sparse_attention
from encoders_fast.ops.block_sparse_attention import constructors
from tests.closeness import relative_error

ops = torch.ops.encoders_fast
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
PATTERN = BlockSparsePattern.big_bird(46, block=4, heads=2, random_blocks=1, training=True)


def inputs(tokens: int = 46, dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shape = (2, 2, tokens, 8)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad) for _ in range(3)]


def forget_patterns() -> None:
    for name in list(vars(constructors._kept)):
        delattr(constructors._kept, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype):
    real = torch.arange(46) < torch.tensor([[46], [30]])
    factors = torch.tensor([[0.5, -2.0], [0.0, 1.0]], dtype=torch.promote_types(dtype, torch.float32))
    options = (4, False, real, None, factors, torch.tensor([3, 4]), 0.2, 0.3, None)
    tensors = inputs(dtype=dtype, grad=True)
    opcheck(ops.block_sparse_attention.default, (*tensors, *PATTERN.lists, *options))
    bare = (4, True, None, real, None, None, 0.0, 0.3, "reference")
    opcheck(ops.block_sparse_attention.default, (*tensors, *PATTERN.lists, *bare))
    tensors = [tensor.detach() for tensor in tensors]
    kept = ops.block_sparse_attention(*tensors, *PATTERN.lists, *options)
    for dlog_sum_exp in (None, kept[1].clone()):
        opcheck(
            ops.block_sparse_attention_backward.default,
            (tensors[0].flip(0), dlog_sum_exp, *tensors, *kept, *PATTERN.lists, *options),
            test_utils=("test_schema", "test_faketensor"),
        )


def three_patterns(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A model's layers: patterns are asked for inside of what is compiled."""
    T = query.shape[2]
    first = BlockSparsePattern.big_bird(T, block=4, heads=2, random_blocks=1, layer=3, training=True)
    second = BlockSparsePattern.sliding(T, block=4, causal=True, random_blocks=1)
    x = block_sparse_attention(query, key, value, first)
    x, log_sum_exp = block_sparse_attention(x, key, value, second, return_log_sum_exp=True)
    return block_sparse_attention(x, key, value, BlockSparsePattern.full(T, causal=True)) + log_sum_exp[..., None]


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_forward_and_backward_equal_eager(dynamic):
    forget_patterns()
    compiled = torch.compile(three_patterns, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for tokens in (46, 48, 61, 46, 9):
        one, other = inputs(tokens, grad=True), inputs(tokens, grad=True)
        compiled(*one).square().sum().backward()
        three_patterns(*other).square().sum().backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_program_has_one_node_per_call(strict):
    class Layers(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return three_patterns(query, key, value)

    forget_patterns()
    args = inputs()
    program = torch.export.export(Layers(), tuple(args), strict=strict)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(ops.block_sparse_attention.default) == 3
    assert torch.equal(program.module()(*args), three_patterns(*args))


def test_func_transforms():
    x = inputs(dtype=torch.float64)[0]

    def ours(q: Tensor) -> Tensor:
        return block_sparse_attention(q, x, x, PATTERN)

    def plain(q: Tensor) -> Tensor:
        return attention_probabilities(q, x, PATTERN) @ x

    ours_grad, plain_grad = (torch.func.grad(lambda q, f=f: f(q).square().sum())(x) for f in (ours, plain))
    assert relative_error(ours_grad, plain_grad) < 1e-13
    batched = torch.func.vmap(ours)(torch.stack([x, 2 * x]))
    assert torch.equal(batched[1], ours(2 * x))
    with pytest.raises(NotImplementedError, match="block_sparse_attention has no forward-mode derivative"):
        torch.func.jvp(ours, (x,), (x,))


def test_second_gradients_are_refused_and_those_of_the_probabilities_exist():
    x = inputs(dtype=torch.float64, grad=True)[0]
    (gradient,) = torch.autograd.grad(block_sparse_attention(x, x, x, PATTERN).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"differentiable once; .* use attention_probabilities"):
        gradient.sum().backward()
    pattern = BlockSparsePattern.full(3, 2, block=2, causal=True)  # the first query has no key
    small = [x.detach()[:1, :1, :tokens, :2].clone().requires_grad_() for tokens in (3, 2)]
    torch.autograd.gradgradcheck(lambda q, k: attention_probabilities(q, k, pattern), small)


def test_autocast_takes_the_inputs_to_its_dtype_and_nothing_inside():
    query, key, value = inputs(grad=True)
    exact = block_sparse_attention(*(x.detach().bfloat16().double() for x in (query, key, value)), PATTERN)

    def mixed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return block_sparse_attention(query, key.bfloat16(), value, PATTERN)

    for call in (mixed, torch.compile(mixed, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = call(query, key, value)
            assert block_sparse_attention(*inputs(dtype=torch.float64), PATTERN).dtype == torch.float64
            out.sum().backward()
        assert out.dtype == torch.bfloat16
        assert query.grad.dtype == torch.float32
        # One rounding of the result: scores or probabilities in bfloat16 would be further off.
        assert relative_error(out, exact) < 0.5 * torch.finfo(torch.bfloat16).eps


def test_forced_backend_holds_in_backward_on_another_thread():
    query, key, value = inputs(grad=True)
    with use_backend("reference"):
        out = block_sparse_attention(query, key, value, PATTERN)
    with _dispatch.record() as calls:
        thread = threading.Thread(target=lambda: out.sum().backward())
        thread.start()
        thread.join()
    assert calls == [("block_sparse_attention", "reference")]


def test_gradient_of_a_head_mask_inside_vmap():
    """There it does not look as if it needed one."""
    query = torch.randn(3, 1, 2, 46, 8)
    factors = torch.rand(3, 2)

    def summed(call):
        return lambda factors: torch.func.vmap(call)(query, factors).square().sum()

    def inside(query: Tensor, factors: Tensor) -> Tensor:
        return block_sparse_attention(query, query, query, PATTERN, head_mask=factors)

    def outside(query: Tensor, factors: Tensor) -> Tensor:
        return block_sparse_attention(query, query, query, PATTERN) * factors[:, None, None]

    torch.testing.assert_close(torch.func.grad(summed(inside))(factors), torch.func.grad(summed(outside))(factors))
