"""Attention by every implementation: the same numbers, masks of every shape, heads that are masked."""

import types

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import AttentionInterface

import encoders_fast
from encoders_fast import _native
from encoders_fast._dispatch import record, tables
from encoders_fast.models import attention
from encoders_fast.models.attention import Mask, attend, head_masks, make_mask
from encoders_fast.models.relative_positions import relative_scores
from tests.closeness import assert_as_good_as
from tests.models.model_cases import pair

B, H, T, K = 2, 3, 9, 8
SCALE = 0.3
# "sdpa in blocks" is "sdpa" as it is where this library's kernel is the faster one.
IMPLEMENTATIONS = ["eager", "sdpa", "sdpa in blocks", "encoders_fast"]


@pytest.fixture(autouse=True)
def _in_blocks(request, monkeypatch):
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("implementation") == "sdpa in blocks":
        monkeypatch.setattr(attention, "_WORTH_BLOCKS", 0)


def module(implementation, training=False):
    layer = torch.nn.Module().train(training)
    layer.config = types.SimpleNamespace(_attn_implementation=implementation.removesuffix(" in blocks"))
    return layer


def heads(tokens=T, dtype=torch.float32):
    x = torch.randn(B, H, tokens, K)
    x[0, 1, -1] *= 20  # a token that stands out
    return x.to(dtype).requires_grad_()


def exact(query, key, value, visible=None, head_mask=None, added=None):
    """In float64 and word by word."""
    query, key, value = (each.detach().double() for each in (query, key, value))
    scores = query @ key.transpose(-1, -2) * SCALE
    if added is not None:
        scores = scores + added.double()
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    probabilities = scores.softmax(-1)
    if head_mask is not None:
        probabilities = probabilities * head_mask.double()[:, None, None]
    return (probabilities @ value).transpose(1, 2).flatten(2), probabilities


PADDING = torch.tensor([[1] * T, [0, 0] + [1] * 4 + [0] * 3])
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()
MASKS = {
    "none": (None, None, None),
    "padding": (PADDING, None, PADDING.bool()[:, None, None]),
    "padding in floats": (PADDING.float(), None, PADDING.bool()[:, None, None]),
    "padding of one row": (PADDING[1:], None, PADDING[1:].bool()[:, None, None]),
    "causal": (None, 0, CAUSAL),
    "causal with padding": (PADDING.flip(0)[:, 2:].repeat(1, 2)[:, :T], 0, None),
    "three dimensions": (CAUSAL.expand(B, T, T).long(), None, CAUSAL),
    "four dimensions": (CAUSAL.expand(B, 1, T, T), None, CAUSAL),
    "four dimensions of integers": (CAUSAL.expand(B, H, T, T).int(), 0, CAUSAL),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MASKS)
def test_context(name, implementation, dtype):
    given, first_query, visible = MASKS[name]
    if name == "causal with padding":
        given = torch.ones(B, T, dtype=torch.long)
        given[1, 6:] = 0
        visible = CAUSAL & given.bool()[:, None, None]
    query, key, value = (heads(dtype=dtype) for _ in range(3))
    head_mask = torch.tensor([1.5, 0.0, -0.5], dtype=dtype, requires_grad=True)
    mask = make_mask(given, query.new_empty(B, T), T, first_query)
    context, nothing = attend(module(implementation), query, key, value, mask, scale=SCALE, head_mask=head_mask)
    assert nothing is None
    assert context.shape == (B, T, H * K)
    right, _ = exact(query, key, value, visible, head_mask.detach())
    plain, _ = attend(module("eager"), query, key, value, mask, scale=SCALE, head_mask=head_mask)
    factor = 8 if implementation == "sdpa" else 3  # in float32 torch's own operator has a coarser exponential
    assert_as_good_as(context, plain, right, factor)
    dy = torch.randn(B, T, H * K).to(dtype)
    inputs = (query, key, value, head_mask)
    for ours, theirs, wide in zip(
        torch.autograd.grad((context * dy).sum(), inputs),
        torch.autograd.grad((plain * dy).sum(), inputs),
        _exact_gradients(inputs, visible, dy),
        strict=True,
    ):
        assert_as_good_as(ours, theirs, wide, factor)


def _exact_gradients(inputs, visible, dy):
    query, key, value, head_mask = (each.detach().double().requires_grad_() for each in inputs)
    scores = query @ key.transpose(-1, -2) * SCALE
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    context = ((scores.softmax(-1) * head_mask[:, None, None]) @ value).transpose(1, 2).flatten(2)
    return torch.autograd.grad((context * dy.double()).sum(), (query, key, value, head_mask))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_numbers_that_are_added(implementation):
    """A mask in floating point, a bias, and both; and -inf in a whole row stays finite."""
    query, key, value = (heads() for _ in range(3))
    numbers = torch.randn(B, 1, T, T)
    bias = torch.randn(B, H, T, T)
    mask = make_mask(numbers, query.new_empty(B, T), T)
    for options, added in (((mask, None), numbers), ((Mask(), bias), bias), ((mask, bias), numbers + bias)):
        context, _ = attend(module(implementation), query, key, value, options[0], scale=SCALE, bias=options[1])
        torch.testing.assert_close(context.double(), exact(query, key, value, added=added)[0], rtol=1e-4, atol=1e-5)
    numbers[0, 0, 3] = -torch.inf
    context, _ = attend(module(implementation), query, key, value, mask, scale=SCALE)
    assert context.isfinite().all()
    context.sum().backward()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_queries_that_see_nothing_are_finite(implementation, dtype):
    query, key, value = ((1 + torch.rand(B, H, T, K)).to(dtype) for _ in range(3))
    key *= -10  # with scores near -50, float16's least number is -inf
    for each in (query, key, value):
        each.requires_grad_()
    padding = torch.ones(B, T, dtype=torch.long)
    padding[0] = 0
    padding[1, :3] = 0
    numbers = torch.zeros(B, 1, T, T).masked_fill(padding[:, None, None] == 0, torch.finfo(torch.float32).min)
    for given, first_query in ((padding, None), (padding, 0), (numbers, None)):
        mask = make_mask(given, query.new_empty(B, T), T, first_query)
        context, _ = attend(module(implementation), query, key, value, mask, scale=SCALE)
        context.float().square().sum().backward()
        for each in (context, query.grad, key.grad, value.grad):
            assert each.isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_probabilities(implementation):
    query, key, value = (heads() for _ in range(3))
    head_mask = torch.tensor([1.5, 0.0, -0.5])
    mask = make_mask(PADDING, query.new_empty(B, T), T)
    context, probabilities = attend(
        module(implementation), query, key, value, mask, scale=SCALE, head_mask=head_mask, output_attentions=True
    )
    right, weights = exact(query, key, value, PADDING.bool()[:, None, None], head_mask)
    torch.testing.assert_close(probabilities.double(), weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(context.double(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_more_keys_than_queries(implementation):
    """A step with a cache; and a cache of fixed size, whose free end nobody sees."""
    query, key, value = heads(2), heads(), heads()
    for first_query, free in ((T - 2, 0), (4, 3)):
        mask = make_mask(None, query.new_empty(B, 2), first_query + 2, first_query)
        context, _ = attend(module(implementation), query, key, value, mask, scale=SCALE)
        visible = torch.arange(T) <= first_query + torch.arange(2)[:, None]
        assert visible[-1].logical_not().sum() == free
        right, _ = exact(query, key, value, visible)
        torch.testing.assert_close(context.double(), right, rtol=1e-4, atol=1e-5)
        padding = torch.ones(B, first_query + 2)
        padding[1, :3] = 0
        mask = make_mask(padding, query.new_empty(B, 2), first_query + 2, first_query)
        context, _ = attend(module(implementation), query, key, value, mask, scale=SCALE)
        seen = torch.nn.functional.pad(padding.bool(), (0, free))[:, None, None]
        right, _ = exact(query, key, value, visible & seen)
        torch.testing.assert_close(context.double(), right, rtol=1e-4, atol=1e-5)
    tensor = make_mask(None, query.new_empty(B, 2), None, torch.tensor(4))
    context, _ = attend(module(implementation), query, key, value, tensor, scale=SCALE)
    visible = torch.arange(T) <= 4 + torch.arange(2)[:, None]
    torch.testing.assert_close(context.double(), exact(query, key, value, visible)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout(implementation):
    query, key, value = heads(40), heads(40), torch.ones(B, H, 40, K)
    options = {"scale": 0.01, "dropout_p": 0.3}
    calm, _ = attend(module(implementation), query, key, value, **options)
    torch.testing.assert_close(calm, torch.ones_like(calm))
    torch.manual_seed(1)
    first, _ = attend(module(implementation, training=True), query, key, value, **options)
    torch.manual_seed(1)
    again, _ = attend(module(implementation, training=True), query, key, value, **options)
    other, _ = attend(module(implementation, training=True), query, key, value, **options)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    # B * H * 40 sums of 40 probabilities of 1/40, each kept with 0.7 and divided by it.
    assert first.mean().item() == pytest.approx(1.0, abs=0.03)
    assert first.std().item() == pytest.approx((0.3 / 0.7 / 40) ** 0.5, rel=0.3)


def test_state_says_what_is_dropped():
    """In encoders_fast: the op, and the formula that takes its place where probabilities are asked for."""
    query, key, value = (heads(40) for _ in range(3))
    state = torch.tensor([5, 7])
    options = {"scale": SCALE, "dropout_p": 0.3, "rng_state": state}
    layer = module("encoders_fast", training=True)
    dropped, _ = attend(layer, query, key, value, **options)
    shown, probabilities = attend(layer, query, key, value, **options, output_attentions=True)
    torch.testing.assert_close(dropped, shown, rtol=1e-4, atol=1e-5)
    assert 0.2 < (probabilities == 0).float().mean().item() < 0.4


@pytest.mark.parametrize("backend", [backend.name for backend in tables()["block_sparse_attention"]])
def test_op(backend):
    """`encoders_fast` is the op, on every backend that can; the other implementations are not."""
    query, key, value = (heads() for _ in range(3))
    for implementation in IMPLEMENTATIONS:
        with record() as calls, encoders_fast.use_backend(backend):
            try:
                attend(module(implementation), query, key, value, scale=SCALE)
            except NotImplementedError:
                assert implementation == "encoders_fast"
                continue
        assert calls == ([("block_sparse_attention", backend)] if implementation == "encoders_fast" else [])


def test_which_operator_sdpa_is(monkeypatch):
    """This library's where it is the faster one; torch's for few tokens, and where somebody would notice."""
    enough = torch.randn(1, 4, 256, 64)
    ours = [("block_sparse_attention", "cpu")]

    def calls(*operands, layer=module("sdpa"), **options):  # noqa: B008  one for all
        with record() as found:
            attend(layer, *operands, scale=SCALE, **options)
        return found

    query = enough.clone().requires_grad_()
    assert calls(query, enough, enough) == calls(enough, enough, enough, dropout_p=0.5) == ours
    assert calls(enough.bfloat16(), enough.bfloat16(), enough.bfloat16()) == ours
    assert calls(enough[:, :, :1], enough, enough) == []
    assert calls(*[enough.double()] * 3) == []
    assert calls(*[enough] * 3, bias=torch.zeros(1, 1, 256, 256)) == []
    assert calls(*[enough] * 3, layer=module("sdpa", training=True), dropout_p=0.5) == []
    assert calls(*[enough] * 3, mask=Mask(pairs=torch.ones(1, 1, 256, 256, dtype=torch.bool))) == []
    with encoders_fast.use_backend("reference"):
        assert calls(*[enough] * 3) == []
    one = torch.randn(32, 4, 1, 64), torch.randn(32, 4, 256, 64)
    assert calls(one[0], one[1], one[1]) == []
    assert calls(*[t.bfloat16() for t in (one[0], one[1], one[1])]) == ours
    assert calls(enough, enough[:, :, :200], enough[:, :, :200], mask=Mask(first_query=0)) == []
    with sdpa_kernel(SDPBackend.MATH):
        assert calls(*[enough] * 3) == []
    with FlopCounterMode(display=False):
        assert calls(*[enough] * 3) == []
    with record() as found:
        layer = module("sdpa")
        torch.compile(lambda x: attend(layer, x, x, x, scale=SCALE)[0], backend="eager")(enough)
        torch.func.grad(lambda x: attend(layer, x, x, x, scale=SCALE)[0].sum())(enough)
    assert found == []
    monkeypatch.setattr(_native, "missing", "not built")
    assert calls(*[enough] * 3) == []


def test_registered_function():
    """One's own, with the mask that transformers would give it."""
    query, key, value = (heads() for _ in range(3))
    seen = {}

    def function(layer, query, key, value, attention_mask, dropout, scaling, is_causal):
        seen.update(mask=attention_mask, dropout=dropout, causal=is_causal)
        return (query + scaling).transpose(1, 2), None

    AttentionInterface.register("flash_of_mine", function)
    AttentionInterface.register("mine", function)
    mask = make_mask(PADDING, query.new_empty(B, T), T, 0)
    head_mask = torch.tensor([2.0, 0.0, 1.0])
    options = {"scale": SCALE, "head_mask": head_mask, "dropout_p": 0.5}
    context, _ = attend(module("flash_of_mine", training=True), query, key, value, mask, **options)
    torch.testing.assert_close(context, ((query + SCALE) * head_mask[:, None, None]).transpose(1, 2).flatten(2))
    assert seen["dropout"] == 0.5
    assert seen["causal"]
    assert torch.equal(seen["mask"], PADDING.bool())
    attend(module("mine"), query, key, value, mask, scale=SCALE)
    assert seen["dropout"] == 0.0
    assert torch.equal(seen["mask"] == 0, (PADDING.bool()[:, None, None] & CAUSAL))
    with pytest.raises(NotImplementedError, match="flash_of_mine takes an attention_mask"):
        attend(module("flash_of_mine"), query, key, value, scale=SCALE, bias=torch.zeros(1))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["RobertaPreLayerNormForMaskedLM", "RobertaPreLayerNormForCausalLM"])
def test_in_transformers_own_models(name, padded):
    """`attn_implementation="encoders_fast"` is a valid name for every model, once this library's models are loaded."""
    stock, _ = pair(name)
    ids = torch.randint(3, 99, (2, 7))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 4:] = 0
    with torch.no_grad():
        expected = stock(ids, attention_mask=mask).logits
        stock.set_attn_implementation("encoders_fast")
        with record() as calls:
            logits = stock(ids, attention_mask=mask).logits
    assert len(calls) == 2
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 8), (3, 9), (2, 8, 9), (2, 1, 8, 9), (9,)])
def test_masks_of_the_wrong_shape(shape):
    with pytest.raises(ValueError, match="attention_mask"):
        make_mask(torch.ones(shape), torch.zeros(2, 9), 9)


def test_columns_of_a_mask():
    query = heads()
    mask = make_mask(torch.ones(B, 1, T, T + 1, dtype=torch.bool), query.new_empty(B, T), T)
    with pytest.raises(ValueError, match=r"must have 9 columns"):
        attend(module("sdpa"), query, query, query, mask, scale=SCALE)


def test_head_masks():
    assert head_masks(None, 2, 3, torch.float32) == [None, None]
    for given in (torch.tensor([1, 0, 2]), torch.tensor([[1, 0, 2], [1, 0, 2]])):
        first, second = head_masks(given, 2, 3, torch.float32)
        assert first.dtype == torch.float32
        assert torch.equal(first, second)
    with pytest.raises(ValueError, match=r"head_mask \(2,\) must be \(3,\) or \(2, 3\)"):
        head_masks(torch.ones(2), 2, 3, torch.float32)


@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize(("queries", "first"), [(5, 0), (1, 4), (2, 3), (2, torch.tensor(3))], ids=str)
def test_relative_scores(queries, first, with_keys):
    query, key = torch.randn(B, H, queries, K), torch.randn(B, H, 5, K)
    distances = torch.randn(2 * 6 - 1, K)
    scores = relative_scores(query, key, distances, first, with_keys=with_keys)
    for i in range(queries):
        for j in range(5):
            embedding = distances[int(first) + i - j + 6 - 1]
            right = query[:, :, i] @ embedding + (key[:, :, j] @ embedding if with_keys else 0)
            torch.testing.assert_close(scores[:, :, i, j], right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_sequences_and_one_token(implementation):
    for shape in ((0, H, T, K), (1, H, 1, K)):
        query = torch.randn(shape, requires_grad=True)
        context, _ = attend(module(implementation), query, query, query, scale=SCALE)
        assert context.shape == (shape[0], shape[2], H * K)
        context.sum().backward()
