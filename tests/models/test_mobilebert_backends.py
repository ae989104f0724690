"""Which backend each layer ran on, and when a layer does without the ops: a model must not fall back unnoticed."""

import copy
import itertools

import pytest
import torch
import transformers
from torch import nn

import encoders_fast
from encoders_fast import _dispatch
from encoders_fast._dispatch import record
from encoders_fast.models.masks import Mask
from encoders_fast.ops import NormedProjection, Projection
from tests.models.model_cases import batch, pair

NAME = "MobileBertForMaskedLM"
OPS = ("bottleneck_input", "bottleneck_ffn")


def _first_able(model, dtype, backend=None):
    """What the tables say for a model on this machine, asked for without running it."""
    layer = model.mobilebert.encoder.layer[0]
    activations = torch.float32 if dtype == torch.float16 else dtype
    h, u0 = torch.empty(2, 12, 32, dtype=activations), torch.empty(2, 12, 24, dtype=activations)

    def linear(module):
        return Projection(module.weight, module.bias)

    def normed(module):
        return NormedProjection(*linear(module.dense), module.LayerNorm.weight, module.LayerNorm.bias)

    own, bottleneck = layer.attention.self, layer.bottleneck
    blocks = [(linear(block.intermediate.dense), normed(block.output)) for block in layer.blocks()]
    calls = {
        "bottleneck_input": (h, *map(linear, (own.query, own.key, own.value)), *map(normed, bottleneck.children())),
        "bottleneck_ffn": (u0, u0, h, normed(layer.attention.output), blocks, normed(layer.output.bottleneck)),
    }
    with encoders_fast.use_backend(backend):
        return [(op, encoders_fast.explain(op, *args).chosen) for op, args in calls.items()]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_backend_of_each_layer(dtype, train):
    _, model = pair(NAME, dtype, num_hidden_layers=3, attention_probs_dropout_prob=0.1, hidden_dropout_prob=0.1)
    expected = _first_able(model, dtype, "reference" if train else None)  # which is what gradients are computed by
    inputs = batch(NAME, model.config, labels=True)
    with record() as calls, torch.set_grad_enabled(train):
        loss = model.train(train)(**inputs).loss
    assert calls == expected * 3
    if train:
        with record() as calls:
            loss.backward()
        assert calls == expected[::-1] * 3


def test_attention_of_our_own():
    _, model = pair(NAME, attn_implementation="encoders_fast")
    with record() as calls:
        model(**batch(NAME, model.config))
    assert [op for op, _ in calls] == ["bottleneck_input", "block_sparse_attention", "bottleneck_ffn"] * 2


BACKENDS = sorted({row.name for op in OPS for row in _dispatch.tables()[op]})


@pytest.mark.parametrize("name", BACKENDS)
def test_forced_backend(name):
    """Every row of the tables gives the model's numbers, or says why it cannot."""
    _, model = pair(NAME)
    inputs = batch(NAME, model.config)
    able = all(chosen == name for _, chosen in _first_able(model, torch.float32, name))
    with encoders_fast.use_backend(name):
        if not able:
            with pytest.raises(NotImplementedError, match=r"no backend can run this call|there is no backend"):
                model(**inputs)
            return
        with record() as calls:
            logits = model(**inputs).logits
            logits.square().mean().backward()
    assert {backend for _, backend in calls} == {name}
    with encoders_fast.use_backend("reference"), torch.no_grad():
        torch.testing.assert_close(logits, model(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_the_layers_work_is_the_ops():
    """The model has no feed-forward blocks of its own that could hide behind the op's name."""
    _, model = pair("MobileBertModel")
    backend = _dispatch.Backend(
        "marker", lambda key: None, lambda attention, u0, h, *rest: torch.ones_like(h), lambda *args: None
    )
    remove = _dispatch.register_backend("bottleneck_ffn", backend)
    try:
        with torch.no_grad():
            h = model(**batch("MobileBertModel", model.config)).last_hidden_state
        assert torch.equal(h, torch.ones_like(h))
    finally:
        remove()


class Adapted(nn.Module):
    """As an adapter puts itself in a Linear's place."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.extra = nn.Parameter(torch.zeros_like(base.weight))

    def forward(self, x):
        return self.base(x) + x @ self.extra.t().to(x.dtype)


PLACES = [
    "attention.self.query",
    "attention.output.dense",
    "bottleneck.input.dense",
    "ffn.1.intermediate.dense",
    "output.dense",
    "output.bottleneck.dense",
]


@pytest.mark.parametrize("options", [{}, {"normalization_type": "layer_norm"}], ids=["no_norm", "layer_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_adapters_take_part(place, dtype, options):
    """The layer with an adapter is composed of its modules, with the same numbers, and the adapter has a gradient."""
    _, model = pair(NAME, dtype, **options)
    inputs = batch(NAME, model.config)
    expected = model(**inputs).logits
    layer = model.mobilebert.encoder.layer[1]
    parent, _, name = place.rpartition(".")
    adapted = Adapted(layer.get_submodule(place))
    setattr(layer.get_submodule(parent), name, adapted)
    with record() as calls:
        logits = model(**inputs).logits
    assert [op for op, _ in calls] == list(OPS)  # the other layer
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    logits.float().square().mean().backward()
    assert adapted.extra.grad.norm() > 0


@pytest.mark.parametrize(
    "place", ["attention", "attention.self", "ffn.0", "ffn.0.output.LayerNorm", "output", "bottleneck"]
)
def test_hooks_are_called(place):
    _, model = pair(NAME)
    inputs = batch(NAME, model.config)
    with torch.no_grad():
        expected = model(**inputs).logits
        seen = []
        layer = model.mobilebert.encoder.layer[0]
        handle = layer.get_submodule(place).register_forward_hook(lambda *args: seen.append(args))
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
        assert len(seen) == 1
        handle.remove()
        with record() as calls:
            model(**inputs)
        assert len(calls) == 4
        layer.get_submodule(place).forward = lambda *args: pytest.fail("called")
        with pytest.raises(pytest.fail.Exception, match="called"):
            model(**inputs)


@pytest.mark.parametrize("options", [{}, {"use_bottleneck": False}], ids=["bottleneck", "no bottleneck"])
def test_dropout_with_and_without_the_ops(options):
    """Composed of its modules a layer drops as much, elsewhere: the mean of many masks tells."""
    _, model = pair("MobileBertModel", hidden_dropout_prob=0.2, num_hidden_layers=1, **options)
    model.train()
    model.embeddings.dropout.p = 0.0
    twin = copy.deepcopy(model)
    twin.encoder.layer[0].output.register_forward_hook(lambda *args: None)
    inputs = batch("MobileBertModel", model.config, B=1)
    inputs = {key: value.expand(400, -1) for key, value in inputs.items()}
    with torch.no_grad():
        one, other = (each(**inputs).last_hidden_state.double() for each in (model, twin))
    deviation = one.var(0).add(other.var(0)).div(400).sqrt()
    assert deviation.mean() > 0
    assert ((one.mean(0) - other.mean(0)) / deviation).abs().mean() < 1.5
    ratio = one.std(0).mean() / other.std(0).mean()
    assert 0.9 < ratio < 1.1


def test_dropout_follows_the_models_seed():
    _, model = pair("MobileBertModel", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    inputs = batch("MobileBertModel", model.config)
    model.train()

    def run(seed):
        torch.manual_seed(seed)
        return model(**inputs).last_hidden_state

    assert torch.equal(run(3), run(3))
    assert not torch.allclose(run(3), run(4), rtol=0.1)


def test_layers_drop_different_elements():
    _, model = pair("MobileBertModel", hidden_dropout_prob=0.5)
    model.train()
    with torch.no_grad():
        for layer in model.encoder.layer:
            out = layer.output.bottleneck
            for parameter in (out.dense.weight, out.LayerNorm.bias, out.dense.bias):
                parameter.zero_()
            out.dense.bias += 1
            out.LayerNorm.weight.fill_(1)
        states = model(**batch("MobileBertModel", model.config), output_hidden_states=True).hidden_states
    masks = [(after - before).abs() > 0.5 for before, after in itertools.pairwise(states)]
    assert all(0.4 < mask.float().mean() < 0.6 for mask in masks)
    assert 0.4 < (masks[0] == masks[1]).float().mean() < 0.6


def test_modules_that_are_exchanged_are_found_again():
    """What a layer has found of its modules is not what it had once."""
    _, model = pair("MobileBertModel")
    inputs = batch("MobileBertModel", model.config)
    layer = model.encoder.layer[0]
    with torch.no_grad():
        model(**inputs)
        for place in ("attention.self.key", "ffn.0.output.dense", "output.bottleneck.LayerNorm", "ffn.1"):
            before = model(**inputs).last_hidden_state
            parent, _, name = place.rpartition(".")
            other = copy.deepcopy(layer.get_submodule(place))
            for parameter in other.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
            setattr(layer.get_submodule(parent), name, other)
            with record() as calls:
                after = model(**inputs).last_hidden_state
            assert len(calls) == 4
            assert not torch.allclose(before, after, rtol=1e-2)
            composed, _ = layer.composed(model.embeddings(inputs["input_ids"]), Mask(), None, None, False)
            fused, _ = layer(model.embeddings(inputs["input_ids"]), Mask())
            torch.testing.assert_close(fused, composed, rtol=1e-4, atol=1e-4)
        layer.attention.self.key.weight = nn.Parameter(torch.zeros_like(layer.attention.self.key.weight))
        assert not torch.allclose(model(**inputs).last_hidden_state, after, rtol=1e-2)
    twin = copy.deepcopy(model)
    assert twin.encoder.layer[0].parts().input_linears[0] is twin.encoder.layer[0].attention.self.query


def test_copies_for_other_devices_find_their_own_modules():
    """As nn.DataParallel makes them: other modules in the same places, and tensors that are no parameters."""
    _, model = pair("MobileBertModel")
    layer = model.encoder.layer[0]
    h = model.embeddings(batch("MobileBertModel", model.config)["input_ids"])
    expected, _ = layer(h, Mask())
    replica = layer._replicate_for_data_parallel()
    other = copy.deepcopy(layer.output)
    weight = other.dense._parameters.pop("weight")
    other.dense.__dict__["weight"] = (2 * weight).detach()
    replica._modules["output"] = other
    with record() as calls:
        doubled, _ = replica(h, Mask())
    assert len(calls) == 2
    assert not torch.allclose(doubled, expected, rtol=1e-2)
    assert torch.equal(layer(h, Mask())[0], expected)


renamed = hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
CHECKPOINTING = "activation_checkpointing" if renamed else "gradient_checkpointing"


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    """Layers run again in the backward pass and drop the same elements, those that their state says."""
    options = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "attn_implementation": "encoders_fast"}
    _, model = pair(NAME, **options)
    twin = copy.deepcopy(model)
    enable = getattr(twin, f"{CHECKPOINTING}_enable")
    enable(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}})
    counts = []
    for each in (model, twin):
        torch.manual_seed(0)
        with record() as calls:
            each.train()(**batch(NAME, model.config, labels=True)).loss.backward()
        counts.append(len(calls))
    assert counts == [12, 18]
    for (key, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=key)


def test_a_training_step_keeps_less():
    """What autograd holds per layer: the streams, and what attention needs. transformers holds every activation."""
    widths = {"hidden_size": 128, "intra_bottleneck_size": 32, "intermediate_size": 128, "num_feedforward_networks": 4}
    kept = []
    for each in pair("MobileBertModel", num_hidden_layers=4, **widths):
        inputs = batch("MobileBertModel", each.config, B=8, T=64)
        parameters = {parameter.untyped_storage().data_ptr() for parameter in each.parameters()}
        storages: dict[int, int] = {}

        def pack(t, parameters=parameters, storages=storages):
            storage = t.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            held = each.train()(**inputs)
        kept.append(sum(storages.values()))
        del held
    stock, mine = kept
    assert mine < 0.3 * stock


@pytest.mark.parametrize("where", ["attention.output.dense", "attention.self.query", "ffn.0.intermediate.dense"])
@torch.no_grad()
def test_parameters_that_do_not_go_together_are_torchs_business(where):
    """One matrix in another dtype, or of another width: its numbers, or its error."""
    _, model = pair("MobileBertModel")
    inputs = batch("MobileBertModel", model.config)
    model(**inputs)
    linear = model.encoder.layer[0].get_submodule(where)
    linear.to(torch.bfloat16)
    found = model(**inputs).last_hidden_state
    with encoders_fast.use_backend("reference"):
        torch.testing.assert_close(found, model(**inputs).last_hidden_state, rtol=1e-4, atol=1e-4)
    linear.to(torch.float32)
    linear.weight = torch.nn.Parameter(linear.weight[:-1])
    with pytest.raises(RuntimeError):
        model(**inputs)


@torch.no_grad()
def test_an_activation_that_changes_is_seen():
    _, model = pair("MobileBertModel", hidden_act="gelu")
    inputs = batch("MobileBertModel", model.config)
    model(**inputs)
    for module in model.modules():
        if isinstance(module, torch.nn.GELU):
            module.approximate = "tanh"
    _, other = pair("MobileBertModel", hidden_act="gelu_new")
    torch.testing.assert_close(model(**inputs).last_hidden_state, other(**inputs).last_hidden_state)
