"""What MobileBERT takes: ids or embeddings, types, positions, masks, keywords; and how it refuses what it cannot."""

import warnings

import pytest
import torch

import encoders_fast.models as ours
from encoders_fast._dispatch import record
from tests.models.model_cases import HEADS, MODELS, assert_outputs_as_good, batch, config, exact, pair, tensors

B, T, E = 8, 12, 20  # so many sequences that no single rounding decides
NAMES = [name for name in MODELS if name.startswith("MobileBert")]


def _ids(*shape):
    return torch.randint(0, 99, shape)


def _padding():
    mask = torch.ones(B, T, dtype=torch.long)
    mask[1, 7:] = 0
    return mask


def _pairs():
    """Each token sees itself, and each other one by chance."""
    return (torch.rand(B, 1, T, T) > 0.4) | torch.eye(T, dtype=torch.bool)


def _scores():
    return torch.randn(B, 1, T, T).masked_fill(~_pairs(), -torch.inf)


INPUTS = {
    "ids only": lambda: {"input_ids": _ids(B, T)},
    "one token": lambda: {"input_ids": _ids(1, 1)},
    "int32 ids": lambda: {"input_ids": _ids(B, T).int()},
    "embeddings": lambda: {"inputs_embeds": torch.randn(B, T, E)},
    "types for all": lambda: {"input_ids": _ids(B, T), "token_type_ids": torch.randint(0, 3, (1, T))},
    "positions": lambda: {"input_ids": _ids(B, T), "position_ids": torch.randint(0, 64, (B, T))},
    "flat positions": lambda: {"input_ids": _ids(B, T), "position_ids": torch.randperm(64)[:T]},
    "padding": lambda: {"input_ids": _ids(B, T), "attention_mask": _padding()},
    "padding on the left": lambda: {"input_ids": _ids(B, T), "attention_mask": _padding().flip(1)},
    "floating padding": lambda: {"input_ids": _ids(B, T), "attention_mask": _padding().float()},
    "boolean pairs": lambda: {"input_ids": _ids(B, T), "attention_mask": _pairs()},
    "scores": lambda: {"input_ids": _ids(B, T), "attention_mask": _scores()},
    "everything": lambda: {
        "inputs_embeds": torch.randn(B, T, E),
        "attention_mask": _padding(),
        "token_type_ids": torch.randint(0, 3, (B, T)),
        "position_ids": torch.randint(0, 64, (B, T)),
    },
}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_inputs(make, implementation):
    stock, model = pair("MobileBertModel", attn_implementation=implementation)
    for parameter in (*stock.parameters(), *model.parameters()):
        if parameter.dim() == 2:  # random weights make the stream grow, and any rounding with it
            parameter.data *= 0.5
    inputs = make()
    if inputs.get("attention_mask") is not None and inputs["attention_mask"].dim() == 4 and implementation == "eager":
        # transformers adds such a mask in eager attention: booleans have to become numbers there.
        given = inputs["attention_mask"]
        theirs = given if given.is_floating_point() else torch.zeros(given.shape).masked_fill(~given, -1e30)
    else:
        theirs = inputs.get("attention_mask")
    theirs = inputs | ({} if theirs is None else {"attention_mask": theirs})
    wide = {k: v.double() if v.is_floating_point() else v for k, v in theirs.items()}
    with torch.no_grad():
        output, plain, right = model(**inputs), stock(**theirs), exact(stock)(**wide)
    assert_outputs_as_good(output, plain, right)


def test_a_mask_for_each_token():
    """[B, T, T], 0 where a token is hidden from another: as documented once, and as one for all heads."""
    _, model = pair("MobileBertModel")
    ids, pairs = _ids(B, T), _pairs()
    with torch.no_grad():
        expected = model(ids, attention_mask=pairs).last_hidden_state
        torch.testing.assert_close(model(ids, attention_mask=pairs[:, 0].long()).last_hidden_state, expected)


def test_padding_has_no_effect_but_through_trigrams():
    """The last token of a padded sequence has the padding's word beside it, which transformers has too."""
    _, model = pair("MobileBertModel", trigram_input=False)
    ids = _ids(1, T)
    with torch.no_grad():
        alone = model(ids[:, :7]).last_hidden_state
        padded = model(ids, attention_mask=_padding()[1:2]).last_hidden_state
        torch.testing.assert_close(padded[:, :7], alone, rtol=1e-4, atol=1e-4)


IMPLEMENTATIONS = ["eager", "sdpa", "encoders_fast"]


@pytest.mark.parametrize("mask", [None, _padding, _pairs, _scores], ids=["none", "padding", "pairs", "scores"])
def test_kinds_of_attention_agree(mask):
    inputs = {"input_ids": _ids(B, T), "attention_mask": None if mask is None else mask()}
    outputs, gradients = [], []
    for implementation in IMPLEMENTATIONS:
        _, model = pair("MobileBertModel", attn_implementation=implementation)
        outputs.append(model(**inputs).last_hidden_state)
        outputs[-1].square().mean().backward()
        gradients.append(model.encoder.layer[0].attention.self.query.weight.grad)
    for i in (1, 2):
        torch.testing.assert_close(outputs[i], outputs[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradients[i], gradients[0], rtol=1e-3, atol=1e-3)


def test_attentions():
    stock, model = pair("MobileBertModel", attn_implementation="eager")
    inputs = {"input_ids": _ids(B, T), "attention_mask": _padding()}
    with torch.no_grad():
        options = {"output_attentions": True, "output_hidden_states": True}
        output, plain, right = (each(**inputs, **options) for each in (model, stock, exact(stock)))
    assert list(output) == list(plain)
    assert [p.shape for p in output.attentions] == [(B, 4, T, T)] * 2
    assert_outputs_as_good(output, plain, right)
    with torch.no_grad():  # whatever attention the model runs on otherwise, and in every head
        model.set_attn_implementation("sdpa")
        for p, expected in zip(model(**inputs, output_attentions=True).attentions, plain.attentions, strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-4)
        head = pair("MobileBertForTokenClassification")[1]
        assert len(head(**inputs, output_attentions=True).attentions) == 2
        assert len(head(**inputs, output_attentions=True, return_dict=False)) == 2


# What a head mask does to the numbers, and to gradients, is compared with golden numbers.
def test_head_masks():
    _, model = pair("MobileBertModel")
    ids = _ids(B, T)
    with torch.no_grad():
        plain = model(ids).last_hidden_state
        assert torch.equal(model(ids, head_mask=torch.ones(4)).last_hidden_state, plain)
        one, other = torch.tensor([1.0, 0.0, 1.0, 0.5]), torch.ones(4)
        by_layer = model(ids, head_mask=torch.stack([one, other])).last_hidden_state
        assert not torch.allclose(by_layer, plain, rtol=1e-2)
        assert not torch.allclose(model(ids, head_mask=one).last_hidden_state, by_layer, rtol=1e-2)
        for implementation in IMPLEMENTATIONS:
            model.set_attn_implementation(implementation)
            same = model(ids, head_mask=torch.stack([one, other])).last_hidden_state
            torch.testing.assert_close(same, by_layer, rtol=1e-4, atol=1e-4)
    for wrong in (torch.ones(3), torch.ones(3, 4), torch.ones(1, 2, 4)):
        with pytest.raises(ValueError, match=r"head_mask .* must be \(4,\) or \(2, 4\)"):
            model(ids, head_mask=wrong)


def test_pruned_heads(tmp_path):
    """A pruned head is one that is masked; the checkpoint knows, and so do masks for the heads that are left."""
    name = "MobileBertForMaskedLM"
    _, model = pair(name)
    ids, mask = _ids(B, T), torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 1]])
    some = torch.tensor([[0.5, 1, 2, 1], [1, 3, 1, 1]])
    with torch.no_grad():
        masked, both = model(ids, head_mask=mask).logits, model(ids, head_mask=mask * some).logits
        model.prune_heads({0: [1, 3]})
        model.prune_heads({1: [0], 0: [1]})
        assert model.mobilebert.encoder.layer[0].attention.self.query.weight.shape == (12, 24)
        model.save_pretrained(tmp_path)
        for each in (model, ours.MobileBertForMaskedLM.from_pretrained(tmp_path).eval()):
            assert each.config.pruned_heads[0] == [1, 3] or each.config.pruned_heads["0"] == [1, 3]
            with record() as calls:
                torch.testing.assert_close(each(ids).logits, masked, rtol=1e-4, atol=1e-4)
            assert len(calls) == 4
            torch.testing.assert_close(each(ids, head_mask=some).logits, both, rtol=1e-4, atol=1e-4)
    for heads in ({2: [0]}, {0: [4]}, {1: [1, 2, 3]}):
        with pytest.raises(ValueError, match=r"there is no layer 2|cannot be pruned|no head left"):
            model.prune_heads(heads)


@pytest.mark.parametrize("name", NAMES)
def test_keywords(name):
    _, model = pair(name)
    inputs = batch(name, model.config)
    model(**inputs, head_mask=None, output_attentions=None, num_items_in_batch=torch.tensor(3))
    with pytest.raises(TypeError, match="MobileBertModel has no argument 'token_types'"):
        model(**inputs, token_types=inputs["token_type_ids"])


def test_old_name_of_the_labels():
    stock, model = pair("MobileBertForNextSentencePrediction")
    inputs = batch("MobileBertForNextSentencePrediction", model.config, labels=True)
    expected = model(**inputs).loss
    assert relative(expected, stock(**inputs).loss) < 1e-5
    labels = inputs.pop("labels")
    with pytest.warns(FutureWarning, match="next_sentence_label is deprecated"):
        assert torch.equal(model(**inputs, next_sentence_label=labels).loss, expected)


def relative(one, other):
    return abs(one - other).item() / abs(other).item()


@pytest.mark.parametrize("outside", [T, T + 5, -3])
def test_span_outside_the_sequence(outside):
    stock, model = pair("MobileBertForQuestionAnswering")
    inputs = batch("MobileBertForQuestionAnswering", model.config)
    spans = {"start_positions": torch.tensor([3, outside]), "end_positions": torch.tensor([outside, 4])}
    assert relative(model(**inputs, **spans).loss, stock(**inputs, **spans).loss) < 1e-5


def test_half_of_the_labels_is_no_loss():
    """As in transformers."""
    stock, model = pair("MobileBertForPreTraining")
    inputs = batch("MobileBertForPreTraining", model.config, labels=True)
    for key in ("labels", "next_sentence_label"):
        fewer = {k: v for k, v in inputs.items() if k != key}
        assert model(**fewer).loss is stock(**fewer).loss is None


def test_several_choices():
    stock, model = pair("MobileBertForMultipleChoice")
    mask = torch.ones(B, 3, T, dtype=torch.long)
    mask[1, 2, 5:] = 0
    inputs = {
        "inputs_embeds": torch.randn(B, 3, T, E),
        "attention_mask": mask,
        "position_ids": torch.randint(0, 64, (B, 3, T)),
    }
    wide = inputs | {"inputs_embeds": inputs["inputs_embeds"].double()}
    assert_outputs_as_good(model(**inputs), stock(**inputs), exact(stock)(**wide))


WRONG = [
    ({}, ValueError, "either input_ids or inputs_embeds; neither"),
    ({"input_ids": _ids(B, T), "inputs_embeds": torch.randn(B, T, E)}, ValueError, "inputs_embeds; both"),
    ({"input_ids": _ids(T)}, ValueError, r"input_ids must be \[batch, tokens\]; its shape is \(12,\)"),
    ({"inputs_embeds": torch.randn(B, T, 32)}, ValueError, r"inputs_embeds \(8, 12, 32\) must have .* width, 20"),
    ({"input_ids": _ids(B, 65)}, ValueError, "sequences have 65 tokens, the model has 64 positions"),
    ({"input_ids": torch.randn(B, T)}, TypeError, r"input_ids must be int64 or int32; they are torch\.float32"),
    ({"input_ids": _ids(B, T), "token_type_ids": _ids(B, 11)}, ValueError, r"token_type_ids \(8, 11\) must be \(8, 12"),
    ({"input_ids": _ids(B, T), "attention_mask": torch.ones(B, 11)}, ValueError, r"attention_mask \(8, 11\) must be"),
    ({"input_ids": _ids(B, T), "attention_mask": torch.ones(T)}, ValueError, r"attention_mask must be \[batch, keys\]"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[message[:24] for *_, message in WRONG])
def test_wrong_inputs(wrong, error, message):
    model = ours.MobileBertModel(config("MobileBertModel"))
    with pytest.raises(error, match=message):
        model(**wrong)


def test_empty_batch():
    for name in ("MobileBertModel", "MobileBertForMaskedLM", "MobileBertForSequenceClassification"):
        model = getattr(ours, name)(config(name)).eval()
        assert model(_ids(0, T))[0].shape[0] == 0


def test_inputs_are_left_as_they_were():
    _, model = pair("MobileBertModel")
    embeddings = torch.randn(B, T, E)
    before = embeddings.clone()
    with torch.no_grad():
        states = model(inputs_embeds=embeddings, output_hidden_states=True).hidden_states
        again = model(inputs_embeds=embeddings, output_hidden_states=True).hidden_states
    assert torch.equal(embeddings, before)
    assert all(torch.equal(a, b) for a, b in zip(states, again, strict=True))
    assert len({state.data_ptr() for state in states}) == len(states)


def test_nothing_warns():
    for name in (name for name in HEADS if name.startswith("MobileBert")):
        _, model = pair(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all(value.isfinite().all() for _, value in tensors(model(**batch(name, model.config, True))))
