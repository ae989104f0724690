"""MobileBERT's layers in one native call: its numbers, what it heeds, and where the layers are called one by one."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import encoders_fast
import encoders_fast.models as ours
from encoders_fast import _dispatch, _native
from encoders_fast._dispatch import record
from encoders_fast.models import mobilebert_stack
from encoders_fast.models.mobilebert_layer import MobileBertLayer
from encoders_fast.ops import clear_packed, packed_bytes
from tests.closeness import assert_as_good_as, relative_error
from tests.models.model_cases import batch, config, exact, pair, randomize

NAME = "MobileBertModel"
OPS = ["bottleneck_input", "bottleneck_ffn"]
FROM_BOTTLENECK = {"use_bottleneck_attention": True}
NONE = {"use_bottleneck": False, "hidden_size": 24, "intra_bottleneck_size": 24}
half = torch.ops.encoders_fast_native.packed_linear_missing(True) if _native.missing is None else _native.missing
missing = torch.ops.encoders_fast_native.packed_linear_missing(False) if _native.missing is None else _native.missing
pytestmark = pytest.mark.skipif(bool(missing), reason=str(missing))
in_bfloat16 = pytest.param(torch.bfloat16, marks=pytest.mark.skipif(bool(half), reason=str(half)))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every new tensor starts as NaN, and no test finds what another packed."""
    torch.use_deterministic_algorithms(True)
    clear_packed()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def calls(monkeypatch):
    """What was done in one call: True for each time that it was."""
    together, done = mobilebert_stack.packed_layers, []

    def watched(*args):
        y = together(*args)
        done.append(y is not None)
        return y

    monkeypatch.setattr(mobilebert_stack, "packed_layers", watched)
    return done


def tokens(model, B, T, lengths=None):
    """Of these lengths, padded to T."""
    inputs = {
        "input_ids": torch.randint(0, model.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(B))
    }
    if lengths is not None:
        inputs["attention_mask"] = (torch.arange(T) < torch.tensor(lengths)[:, None]).long()
    return inputs


@torch.no_grad()
def check(stock, model, inputs, calls, **options):
    found = model(**inputs, **options).last_hidden_state
    assert calls == [True]
    assert found.isfinite().all()
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    plain, right = (each(**inputs).last_hidden_state for each in (stock, exact(stock)))
    assert_as_good_as(found[real], plain[real], right[real])


# Tiles have 16, 32 and 64 rows; attention has pieces of up to 64 tokens, in vectors of 16.
@pytest.mark.parametrize("dtype", [torch.float32, in_bfloat16], ids=str)
@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 17), (3, 33), (1, 65), (2, 128), (1, 130), (1, 512)])
def test_lengths(B, T, dtype, calls):
    stock, model = pair(NAME, dtype, num_hidden_layers=3, max_position_embeddings=512)
    check(stock, model, tokens(model, B, T), calls)


@pytest.mark.parametrize("dtype", [torch.float32, in_bfloat16], ids=str)
@pytest.mark.parametrize("keep", [True, False], ids=["as keys' mask", "taken out"])
def test_padding(keep, dtype, calls):
    stock, model = pair(NAME, dtype, max_position_embeddings=70)
    model.config.keep_padding = keep
    check(stock, model, tokens(model, 4, 70, [70, 1, 64, 33]), calls)


VARIANTS = [FROM_BOTTLENECK, NONE, {"normalization_type": "layer_norm"}, {"num_feedforward_networks": 1}]
VARIANTS += [{"hidden_act": name} for name in ("gelu", "gelu_new", "silu")]


@pytest.mark.parametrize("dtype", [torch.float32, in_bfloat16], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_variants(options, dtype, calls):
    stock, model = pair(NAME, dtype, **options)
    check(stock, model, tokens(model, 2, 19), calls)


@pytest.mark.parametrize("dtype", [torch.float32, in_bfloat16], ids=str)
@torch.no_grad()
def test_unshared_bottlenecks(dtype, calls):
    """transformers cannot run these."""
    model = ours.MobileBertModel(config(NAME, key_query_shared_bottleneck=False)).eval()
    randomize(model)
    model.to(dtype)
    inputs = tokens(model, 2, 19)
    found = model(**inputs).last_hidden_state
    assert calls == [True]
    with encoders_fast.use_backend("reference"):
        plain, right = (each(**inputs).last_hidden_state for each in (model, copy.deepcopy(model).double()))
    assert_as_good_as(found, plain, right)


@pytest.mark.skipif(bool(half), reason=str(half))
@torch.no_grad()
def test_mixed_dtypes(calls):
    """Biases and norms in float32: then activations are, beside matrices in bfloat16."""
    _, model = pair(NAME, torch.bfloat16)
    for name, parameter in model.encoder.named_parameters():
        if "dense.weight" not in name and not name.endswith(("query.weight", "key.weight", "value.weight")):
            parameter.data = parameter.data.float()
    inputs = tokens(model, 2, 19)
    found = model(**inputs).last_hidden_state
    assert calls == [True]
    assert found.dtype == torch.float32
    handle = model.encoder.layer[0].register_forward_hook(lambda *_: None)
    one_by_one = model(**inputs).last_hidden_state
    handle.remove()
    with encoders_fast.use_backend("reference"):
        right = copy.deepcopy(model).double()(**inputs).last_hidden_state
    assert_as_good_as(found, one_by_one, right)


@pytest.mark.parametrize("dtype", [torch.float32, in_bfloat16], ids=str)
@torch.no_grad()
def test_head_masks_and_pruned_heads(dtype, calls):
    _, model = pair(NAME, dtype)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    head_mask = torch.rand(layers, heads, generator=torch.Generator().manual_seed(0)).to(dtype)
    inputs = tokens(model, 3, 21, [21, 4, 9])
    for _ in range(2):
        del calls[:]
        found = model(**inputs, head_mask=head_mask).last_hidden_state
        assert calls == [True]
        model.set_attn_implementation("eager")
        plain, right = (m(**inputs, head_mask=head_mask) for m in (model, copy.deepcopy(model).double()))
        assert calls == [True]
        model.set_attn_implementation("sdpa")
        assert_as_good_as(found, plain.last_hidden_state, right.last_hidden_state)
        model.prune_heads({i: [1] for i in range(layers)})


@pytest.mark.parametrize("dtype", [torch.float32, in_bfloat16], ids=str)
@torch.no_grad()
def test_same_bits_for_any_number_of_threads(dtype):
    _, model = pair(NAME, dtype, max_position_embeddings=67)
    inputs, before, results = tokens(model, 3, 67, [67, 5, 40]), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append(model(**inputs).last_hidden_state)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@torch.no_grad()
def test_changes_are_seen(calls):
    """Of every parameter: counted, uncounted, with another dtype, another tensor; and of modules."""
    _, model = pair(NAME)
    inputs = tokens(model, 2, 19)

    def right():
        del calls[:]
        found = model(**inputs).last_hidden_state
        assert calls == [True]
        with encoders_fast.use_backend("reference"):
            torch.testing.assert_close(found, model(**inputs).last_hidden_state, rtol=1e-4, atol=1e-4)
        return found

    before = right()
    for name, parameter in model.encoder.layer[1].named_parameters():
        parameter.mul_(1.5)
        after = right()
        assert not torch.equal(before, after), name
        parameter.data = parameter.data * 0.7
        before = right()
        assert not torch.equal(before, after), name
    layer = model.encoder.layer[1]
    layer.output.dense = copy.deepcopy(layer.output.dense)
    layer.output.dense.weight.mul_(2)
    right()
    model.encoder.layer[1] = copy.deepcopy(model.encoder.layer[0])
    right()
    model.load_state_dict({key: value * 0.9 for key, value in model.state_dict().items()}, assign=True)
    right()


@torch.no_grad()
def test_nothing_is_packed_twice(calls):
    _, model = pair(NAME)
    inputs = tokens(model, 2, 19)
    for first in ({}, {"output_hidden_states": True}):
        clear_packed()
        model(**inputs, **first)
        model(**inputs)
        once = packed_bytes()
        model(**inputs, output_hidden_states=True)
        assert packed_bytes() == once
        weights = sum(p.numel() for p in model.encoder.parameters() if p.dim() == 2)
        assert once >= 4 * weights
    del model
    import gc

    gc.collect()
    assert packed_bytes() == 0


def one_by_one(model, inputs, calls, **options):
    del calls[:]
    with record() as recorded:
        model(**inputs, **options)
    assert not any(calls)
    return [op for op, _ in recorded]


@torch.no_grad()
def test_one_by_one_where_somebody_looks(calls):
    _, model = pair(NAME)
    inputs, encoder = tokens(model, 2, 19), model.encoder
    for options in ({"output_hidden_states": True}, {"output_attentions": True}):
        assert one_by_one(model, inputs, calls, **options) == 2 * OPS
    seen = []
    places = [encoder.layer[1], encoder.layer[0].output.dense, encoder.layer[1].attention.self]
    for place in places:
        handle = place.register_forward_hook(lambda module, *_: seen.append(module))
        one_by_one(model, inputs, calls)
        handle.remove()
    assert seen == places
    encoder.layer[0].forward = lambda h, *rest, forward=encoder.layer[0].forward: forward(h, *rest)
    one_by_one(model, inputs, calls)
    del encoder.layer[0].forward
    with record() as recorded:
        model(**inputs)
    assert calls[-1]
    assert recorded == 2 * [(op, "cpu") for op in OPS]


@torch.no_grad()
def test_one_by_one_where_layers_differ(calls):
    class Layer(MobileBertLayer):
        pass

    _, model = pair(NAME)
    inputs, layers = tokens(model, 2, 19), model.encoder.layer
    layers[1].attention.self.scaling *= 2
    assert one_by_one(model, inputs, calls) == 2 * OPS
    layers[1].attention.self.scaling /= 2
    model(**inputs)
    assert calls[-1]
    layers[1].output.LayerNorm.double()  # a norm, and then all of a layer, in another dtype than the others'
    one_by_one(model, inputs, calls)
    layers[1].float().bfloat16()
    one_by_one(model, inputs, calls)
    model.float()
    model(**inputs)
    assert calls[-1]
    layers[1].__class__ = Layer
    assert one_by_one(model, inputs, calls) == 2 * OPS


class Marked(Exception):  # noqa: N818  a sign, not an error
    pass


def marked(*_):
    raise Marked


@torch.no_grad()
def test_one_by_one_elsewhere(calls):
    _, model = pair(NAME)
    inputs = tokens(model, 2, 19)
    with encoders_fast.use_backend("reference"):
        assert one_by_one(model, inputs, calls) == 2 * OPS
    with torch.autocast("cpu", torch.bfloat16):
        one_by_one(model, inputs, calls)
    with torch.enable_grad():
        one_by_one(model, inputs, calls)
    one_by_one(model, inputs | {"attention_mask": torch.ones(2, 19, 19)}, calls)
    model.encoder.layer[1].attention.self.train()
    one_by_one(model, inputs, calls)
    model.eval().set_attn_implementation("eager")
    one_by_one(model, inputs, calls)
    backend = _dispatch.Backend("marker", lambda key: None, marked, marked)
    remove = _dispatch.register_backend("bottleneck_input", backend)
    try:
        model.set_attn_implementation("sdpa")
        with pytest.raises(Marked):
            one_by_one(model, inputs, calls)
    finally:
        remove()


@torch.no_grad()
def test_inference_tensors(calls):
    with torch.inference_mode():
        _, model = pair(NAME)
        inputs = tokens(model, 2, 19)
        assert one_by_one(model, inputs, calls) == 2 * OPS
        nn.init.zeros_(model.encoder.layer[0].output.dense.weight)
        model(**inputs)
        assert packed_bytes() == 0


@torch.no_grad()
def test_copies_are_packed_for_themselves(calls):
    _, model = pair(NAME)
    inputs = batch(NAME, model.config)
    expected = model(**inputs).last_hidden_state
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.mul_(1.2)
    assert not torch.equal(twin(**inputs).last_hidden_state, expected)
    assert torch.equal(model(**inputs).last_hidden_state, expected)
    assert all(calls)


@torch.no_grad()
def test_accelerated(calls):
    """The same for transformers' own, where nothing is padded."""
    stock, _ = pair(NAME)
    inputs = tokens(stock, 2, 19)
    plain, right = stock(**inputs).last_hidden_state, exact(stock)(**inputs).last_hidden_state
    model = encoders_fast.accelerate(stock)
    assert_as_good_as(model(**inputs).last_hidden_state, plain, right)
    assert calls == [True]
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == model.config.num_hidden_layers + 1
    padded = tokens(stock, 2, 19, [19, 4])
    found = model(**padded).last_hidden_state
    assert calls == [True]
    encoders_fast.restore(model)
    torch.testing.assert_close(found, model(**padded).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert "_parts" not in vars(model.encoder)


@torch.no_grad()
def test_modules_that_are_added_later(calls):
    """A list's end changes nothing that stood before it."""
    _, model = pair(NAME)
    inputs = tokens(model, 2, 9)
    layer, block = copy.deepcopy(model.encoder.layer[0]), copy.deepcopy(model.encoder.layer[0].ffn[0])
    for where, module in ((model.encoder.layer[0].ffn, block), (model.encoder.layer, layer)):
        before = model(**inputs).last_hidden_state
        where.append(module)
        model.config.num_hidden_layers = len(model.encoder.layer)
        after = model(**inputs).last_hidden_state
        with encoders_fast.use_backend("reference"):
            assert relative_error(after, model(**inputs).last_hidden_state.double()) < 1e-4
        assert relative_error(after, before.double()) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 5, 32)])
def test_hidden_states_of_other_shapes(shape, calls):
    """The encoder of an accelerated model takes what transformers' takes, or says what is wrong."""
    plain = transformers.MobileBertModel(config(NAME, transformers)).eval()
    model = encoders_fast.accelerate(copy.deepcopy(plain))
    h = torch.randn(shape)
    try:
        expected = plain.encoder(h)[0]
    except Exception:
        expected = None
    if expected is not None:
        torch.testing.assert_close(model.encoder(h)[0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"h \(2, 5, 31\) must have 32 columns"):
        model.encoder(torch.randn(2, 5, 31))


@torch.no_grad()
def test_attention_of_somebody_else_is_called(monkeypatch):
    """An accelerated model looks up "sdpa" where transformers does."""
    model = encoders_fast.accelerate(transformers.MobileBertModel(config(NAME, transformers)).eval())
    theirs, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def attention(*args, **kwargs):
        seen.append(1)
        return theirs(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", attention)
    model(**tokens(model, 2, 9))
    assert len(seen) == model.config.num_hidden_layers
