"""What FNet takes: ids or embeddings, types, positions, keywords; and how it refuses what it cannot take."""

import warnings

import pytest
import torch

import encoders_fast.models as ours
from encoders_fast.models import inputs as input_checks
from tests.models.model_cases import HEADS, MODELS, assert_outputs_as_good, batch, config, exact, pair

FNET_MODELS = [name for name in MODELS if name.startswith("FNet")]
FNET_HEADS = [name for name in HEADS if name.startswith("FNet")]
B, T, D = 2, 12, 32


def _ids(*shape):
    return torch.randint(0, 99, shape)


INPUTS = {
    "ids only": lambda: {"input_ids": _ids(B, T)},
    "int32 ids": lambda: {"input_ids": _ids(B, T).int()},
    "embeddings": lambda: {"inputs_embeds": torch.randn(B, T, D)},
    "types for all": lambda: {"input_ids": _ids(B, T), "token_type_ids": torch.randint(0, 4, (1, T))},
    "positions": lambda: {"input_ids": _ids(B, T), "position_ids": torch.randint(0, 64, (B, T))},
    "positions for all": lambda: {"input_ids": _ids(B, T), "position_ids": torch.randperm(64)[None, :T]},
    "flat positions": lambda: {"input_ids": _ids(B, T), "position_ids": torch.randperm(64)[:T]},
    "everything": lambda: {
        "inputs_embeds": torch.randn(B, T, D),
        "token_type_ids": torch.randint(0, 4, (B, T)),
        "position_ids": torch.randint(0, 64, (B, T)),
    },
    "longer than the positions": lambda: {
        "input_ids": _ids(B, 70),
        "token_type_ids": torch.randint(0, 4, (B, 70)),
        "position_ids": torch.randint(0, 64, (B, 70)),
    },
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_inputs(make):
    stock, model = pair("FNetModel")
    inputs = make()
    with torch.no_grad():
        output, plain = model(**inputs), stock(**inputs)
        wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        right = exact(stock)(**wide)
    assert_outputs_as_good(output, plain, right)


def test_embeddings_of_several_choices():
    stock, model = pair("FNetForMultipleChoice")
    inputs = {"inputs_embeds": torch.randn(B, 3, T, D), "position_ids": torch.randint(0, 64, (B, 3, T))}
    wide = inputs | {"inputs_embeds": inputs["inputs_embeds"].double()}
    assert_outputs_as_good(model(**inputs), stock(**inputs), exact(stock)(**wide))


def test_inputs_are_left_as_they_were():
    _, model = pair("FNetModel")
    embeddings = torch.randn(B, T, D)
    before = embeddings.clone()
    with torch.no_grad():
        states = model(inputs_embeds=embeddings, output_hidden_states=True).hidden_states
        again = model(inputs_embeds=embeddings, output_hidden_states=True).hidden_states
    assert torch.equal(embeddings, before)
    assert all(torch.equal(a, b) for a, b in zip(states, again, strict=True))
    assert len({state.data_ptr() for state in states}) == len(states)


def test_hooks_see_what_the_modules_computed():
    """Without gradients the model writes into its own temporaries, but not into one that a hook may hold."""
    _, model = pair("FNetModel")
    inputs = batch("FNetModel", model.config)
    output = model.encoder.layer[0].output
    seen = {}
    with torch.no_grad():
        handles = [
            linear.register_forward_hook(lambda module, args, y, key=key: seen.update({key: (args[0].clone(), y)}))
            for key, linear in (("first", model.encoder.layer[0].intermediate.dense), ("second", output.dense))
        ]
        hooked = model(**inputs).last_hidden_state
        for key, linear in (("first", model.encoder.layer[0].intermediate.dense), ("second", output.dense)):
            x, y = seen[key]
            torch.testing.assert_close(y, torch.nn.functional.linear(x, linear.weight, linear.bias))
        assert torch.equal(model(**inputs).last_hidden_state, hooked)
        for handle in handles:
            handle.remove()
        # Where nobody looks on, another kernel may do it, with another order of summation.
        torch.testing.assert_close(model(**inputs).last_hidden_state, hooked)


@pytest.mark.parametrize("name", FNET_MODELS)
def test_attention_mask_warns_once(name, monkeypatch):
    monkeypatch.setattr(input_checks, "_warned", set())
    _, model = pair(name)
    inputs = batch(name, model.config)
    mask = torch.ones_like(inputs["input_ids"])
    mask[..., -2:] = 0
    without = model(**inputs)[0]
    with pytest.warns(UserWarning, match="FNet mixes all tokens"):
        first = model(**inputs, attention_mask=mask)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = model(**inputs, attention_mask=mask)[0]
        model(**inputs, attention_mask=None)
    assert torch.equal(first, without)
    assert torch.equal(second, without)


@pytest.mark.parametrize("name", FNET_MODELS)
def test_keywords(name):
    _, model = pair(name)
    inputs = batch(name, model.config)
    model(**inputs, output_attentions=None, num_items_in_batch=torch.tensor(3))
    with pytest.raises(TypeError, match="FNet has no argument 'token_types'"):
        model(**inputs, token_types=inputs["token_type_ids"])
    with pytest.raises(ValueError, match="FNet has no attentions"):
        model(**inputs, output_attentions=True)


WRONG = [
    ({}, ValueError, "either input_ids or inputs_embeds; neither"),
    ({"input_ids": _ids(B, T), "inputs_embeds": torch.randn(B, T, D)}, ValueError, "inputs_embeds; both"),
    ({"input_ids": _ids(T)}, ValueError, r"input_ids must be \[batch, tokens\]; its shape is \(12,\)"),
    ({"inputs_embeds": torch.randn(B, T)}, ValueError, r"inputs_embeds must be \[batch, tokens, width\]"),
    ({"inputs_embeds": torch.randn(B, T, 31)}, ValueError, r"inputs_embeds \(2, 12, 31\) must have .* width, 32"),
    ({"input_ids": _ids(B, 65)}, ValueError, "sequences have 65 tokens, the model has 64 positions"),
    ({"input_ids": torch.randn(B, T)}, TypeError, r"input_ids must be int64 or int32; they are torch\.float32"),
    ({"input_ids": _ids(B, T), "token_type_ids": _ids(B, 11)}, ValueError, r"token_type_ids \(2, 11\) must be \(2, 12"),
    ({"input_ids": _ids(B, T), "position_ids": _ids(3, T)}, ValueError, r"position_ids \(3, 12\) must be \(2, 12\)"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[message[:24] for *_, message in WRONG])
def test_wrong_inputs(wrong, error, message):
    model = ours.FNetModel(config("FNetModel"))
    with pytest.raises(error, match=message):
        model(**wrong)


@pytest.mark.parametrize("name", FNET_HEADS)
def test_wrong_rank(name):
    model = getattr(ours, name)(config(name))
    shape = (B, T) if "MultipleChoice" in name else (B, 3, T)
    with pytest.raises(ValueError, match=r"input_ids must be \[batch, .*tokens\]; its shape is"):
        model(_ids(*shape))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds; neither"):
        model()


def test_empty_batch():
    model = ours.FNetModel(config("FNetModel")).eval()
    assert model(_ids(0, T)).last_hidden_state.shape == (0, T, D)
