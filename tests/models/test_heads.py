"""Every model is transformers' own as seen from outside: names, signatures, outputs, losses, gradients."""

import copy
import inspect

import pytest
import torch
import transformers

import encoders_fast.models as ours
from tests.closeness import relative_error
from tests.models.model_cases import (
    HEADS,
    MODELS,
    assert_outputs_as_good,
    batch,
    config,
    exact,
    family,
    pair,
    randomize,
    tensors,
)


def test_counts():
    assert len(MODELS) == len(HEADS) + len(ours.FAMILIES)
    for name in {family(name) for name in MODELS}:
        theirs = {other for other in dir(transformers) if other.startswith(f"{name}For")}
        assert {head for head in HEADS if family(head) == name} == theirs


@pytest.mark.parametrize("name", MODELS)
def test_signature(name):
    """transformers' parameters in their order, and behind them what transformers takes without naming it."""
    stock, model = (inspect.signature(getattr(library, name).forward).parameters for library in (transformers, ours))
    unnamed = {"head_mask", "cache_position", "output_attentions", "output_hidden_states", "return_dict"}
    names = [parameter for parameter in stock if parameter != "cache_position"]  # it comes and goes with the version
    assert [parameter for parameter in model if parameter in names and parameter not in unnamed] == [
        parameter for parameter in names if parameter not in unnamed
    ]
    assert set(model) - set(stock) <= unnamed
    assert set(names) <= set(model)
    for parameter in set(names) & set(model):
        assert model[parameter].kind == stock[parameter].kind
        assert model[parameter].default == stock[parameter].default


@pytest.mark.parametrize("name", MODELS)
def test_parameters_have_stock_names_shapes_and_initial_values(name):
    torch.manual_seed(1)
    stock = getattr(transformers, name)(config(name, transformers))
    torch.manual_seed(1)
    model = getattr(ours, name)(config(name))
    theirs = stock.state_dict()
    assert list(model.state_dict()) == list(theirs)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=0)
    assert model.base_model_prefix == stock.base_model_prefix
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in stock.named_parameters()]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("name", "labels"),
    [(name, False) for name in MODELS] + [(name, True) for name in HEADS],
    ids=lambda value: value if isinstance(value, str) else ["plain", "labels"][value],
)
def test_outputs(name, labels, train):
    stock, model = (each.train(train) for each in pair(name))
    inputs = batch(name, model.config, labels)
    with torch.no_grad():
        theirs, output = stock(**inputs, output_hidden_states=True), model(**inputs, output_hidden_states=True)
        truth = exact(stock)(**inputs, output_hidden_states=True)
    assert type(output) is type(theirs)
    assert list(output) == list(theirs)
    assert ("loss" in output) == labels
    assert_outputs_as_good(output, theirs, truth)


@pytest.mark.parametrize("name", MODELS)
def test_tuple_output(name):
    stock, model = pair(name)
    inputs = batch(name, model.config, name in HEADS)
    for options in ({}, {"output_hidden_states": True}):
        theirs, output = stock(**inputs, **options, return_dict=False), model(**inputs, **options, return_dict=False)
        assert [type(value) for value in output] == [type(value) for value in theirs]
    if name == "XLMRobertaXLForCausalLM" or name.startswith("BigBirdFor"):
        return  # transformers' own takes the configuration's wish for that of its backbone, and raises
    # Positional, and the configuration's own wish.
    assert len(model(inputs["input_ids"], inputs["token_type_ids"]).to_tuple()) == len(
        stock(inputs["input_ids"], inputs["token_type_ids"]).to_tuple()
    )
    for each in (stock, model):
        each.config.return_dict = False
        each.config.output_hidden_states = True
    theirs, output = stock(**inputs), model(**inputs)
    assert type(output) is type(theirs) is tuple
    assert len(output) == len(theirs)


def _loss(name, model, inputs):
    output = model(**inputs)
    if name in HEADS:
        return output.loss
    h = output.last_hidden_state
    return (h * torch.linspace(-1, 1, h.numel()).view_as(h)).sum() + output.pooler_output.square().sum()


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    stock, model = (each.train() for each in pair(name))
    inputs = batch(name, model.config, name in HEADS)
    truth = exact(stock)
    for each in (stock, model, truth):
        _loss(name, each, inputs).backward()
    plain, right = dict(stock.named_parameters()), dict(truth.named_parameters())
    ours, theirs = [], []
    for key, parameter in model.named_parameters():
        if plain[key].grad is None:
            assert parameter.grad is None, key
        elif right[key].grad.norm() > 1e-10:  # a logit's common shift has no gradient: what is there is rounding
            ours.append(relative_error(parameter.grad, right[key].grad))
            theirs.append(relative_error(plain[key].grad, right[key].grad))
            # A gradient of few numbers can be off by luck: loosely one by one, then strictly all together.
            assert ours[-1] <= 5 * theirs[-1] + 1e-6, key
    assert len(ours) > 20
    assert sum(e**2 for e in ours) <= 2**2 * sum(e**2 for e in theirs)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_matters(name):
    """The other tests would not see a parameter that has no part in the result."""
    _, model = pair(name)
    inputs = batch(name, model.config)
    no_pooler = ("MaskedLM", "TokenClassification", "QuestionAnswering", "CausalLM", "BigBirdForSequenceClassification")
    unused = {"pooler"} if name.endswith(no_pooler) else set()

    def run():
        with torch.no_grad():
            return torch.cat([value.flatten() for _, value in tensors(model(**inputs))])

    before = run()
    for key, parameter in model.named_parameters():
        if unused & set(key.split(".")) or key.endswith(".key.bias"):  # adds the same to all of a query's scores
            continue
        with torch.no_grad():
            kept = parameter.clone()
            # Not one number everywhere: LayerNorm takes out what all of a row has in common.
            parameter += 0.1 * torch.randn_like(parameter)
        assert not torch.allclose(run(), before, rtol=1e-4), key
        with torch.no_grad():
            parameter.copy_(kept)


@pytest.mark.parametrize("name", MODELS)
def test_model_can_be_copied(name):
    _, model = pair(name)
    twin = copy.deepcopy(model)
    inputs = batch(name, model.config)
    before = [value.clone() for _, value in tensors(model(**inputs))]
    randomize(twin, seed=5)
    for (_, value), old, (_, other) in zip(tensors(model(**inputs)), before, tensors(twin(**inputs)), strict=True):
        assert torch.equal(value, old)
        assert not torch.allclose(value, other)
