"""Losses of every kind against transformers, and labels that do not fit."""

import pytest
import torch

import encoders_fast.models as ours
from tests.models.model_cases import assert_outputs_as_good, batch, config, exact, pair

B, T = 2, 12


def _labels(kind, classes):
    if kind == "single_label_classification":
        return torch.randint(0, classes, (B,))
    if kind == "multi_label_classification":
        return torch.randint(0, 2, (B, classes)).float()
    return torch.randn(B, classes) if classes > 1 else torch.randn(B)


def _assert_same_losses(stock, model, inputs):
    wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    outputs = [model(**inputs), stock(**inputs), exact(stock)(**wide)]
    assert_outputs_as_good(*outputs)
    for output in outputs:
        output.loss.backward()
    for (key, parameter), theirs in zip(model.named_parameters(), stock.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("regression", 1),
        ("regression", 3),
        ("single_label_classification", 2),
        ("single_label_classification", 3),
        ("multi_label_classification", 1),
        ("multi_label_classification", 3),
    ],
)
def test_problem_type(kind, classes):
    stock, model = pair("FNetForSequenceClassification", num_labels=classes, problem_type=kind)
    inputs = batch("FNetForSequenceClassification", model.config)
    _assert_same_losses(stock, model, inputs | {"labels": _labels(kind, classes)})


@pytest.mark.parametrize(
    ("classes", "labels", "kind"),
    [
        (1, torch.tensor([0.5, -1.0]), "regression"),
        (1, torch.tensor([[0.5], [-1.0]]), "regression"),
        (3, torch.tensor([2, 0]), "single_label_classification"),
        (3, torch.tensor([[2], [0]]), "single_label_classification"),
        (3, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), "multi_label_classification"),
    ],
)
def test_problem_type_is_inferred_from_the_first_labels(classes, labels, kind):
    stock, model = pair("FNetForSequenceClassification", num_labels=classes)
    inputs = batch("FNetForSequenceClassification", model.config)
    _assert_same_losses(stock, model, inputs | {"labels": labels})
    assert model.config.problem_type == stock.config.problem_type == kind


def test_one_sequence():
    """Where transformers' squeeze() leaves numbers without dimensions."""
    for classes, labels in ((1, torch.tensor([0.5])), (3, torch.tensor(2))):
        stock, model = pair("FNetForSequenceClassification", num_labels=classes)
        inputs = batch("FNetForSequenceClassification", model.config, B=1)
        _assert_same_losses(stock, model, inputs | {"labels": labels})


@pytest.mark.parametrize("outside", [T, T + 5, -3])
def test_span_outside_the_sequence(outside):
    stock, model = pair("FNetForQuestionAnswering")
    inputs = batch("FNetForQuestionAnswering", model.config)
    for shape in ((B,), (B, 1)):
        start, end = torch.tensor([3, outside]).view(shape), torch.tensor([outside, 4]).view(shape)
        _assert_same_losses(stock, model, inputs | {"start_positions": start, "end_positions": end})
        model.zero_grad()
        stock.zero_grad()


@pytest.mark.parametrize("name", ["FNetForPreTraining", "FNetForQuestionAnswering"])
def test_half_of_the_labels_is_no_loss(name):
    """As in transformers."""
    stock, model = pair(name)
    inputs = batch(name, model.config, labels=True)
    for key in [key for key in inputs if "label" in key or "positions" in key]:
        fewer = {k: v for k, v in inputs.items() if k != key}
        assert model(**fewer).loss is None
        assert stock(**fewer).loss is None


def test_flat_token_labels():
    stock, model = pair("FNetForMaskedLM")
    inputs = batch("FNetForMaskedLM", model.config, labels=True)
    _assert_same_losses(stock, model, inputs | {"labels": inputs["labels"].flatten()})


def test_int32_labels():
    """transformers raises."""
    _, model = pair("FNetForTokenClassification")
    inputs = batch("FNetForTokenClassification", model.config, labels=True)
    loss = model(**inputs).loss
    assert torch.equal(model(**inputs | {"labels": inputs["labels"].int()}).loss, loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_logits_is_float32(dtype):
    for name in ("FNetForMaskedLM", "FNetForQuestionAnswering"):
        _, model = pair(name, dtype)
        assert model(**batch(name, model.config, labels=True)).loss.dtype == torch.float32
    for kind in ("regression", "multi_label_classification"):
        _, model = pair("FNetForSequenceClassification", dtype, num_labels=3, problem_type=kind)
        inputs = batch("FNetForSequenceClassification", model.config)
        assert model(**inputs, labels=_labels(kind, 3)).loss.dtype == torch.float32


WRONG = [
    ("FNetForMaskedLM", {"labels": torch.zeros(2, 11, dtype=torch.long)}, r"labels \(2, 11\) must be \(2, 12\)"),
    ("FNetForTokenClassification", {"labels": torch.zeros(2, dtype=torch.long)}, r"labels \(2,\) must be \(2, 12\)"),
    ("FNetForNextSentencePrediction", {"labels": torch.zeros(3, dtype=torch.long)}, r"labels \(3,\) must be \(2,\)"),
    ("FNetForMultipleChoice", {"labels": torch.zeros(2, 3, dtype=torch.long)}, r"labels \(2, 3\) must be \(2,\)"),
    ("FNetForSequenceClassification", {"labels": torch.zeros(2, 3, dtype=torch.long)}, r"single.* \(2, 3\) must be"),
    ("FNetForSequenceClassification", {"labels": torch.zeros(2)}, r"multi.* \(2,\) must be \(2, 3\)"),
    (
        "FNetForPreTraining",
        {"labels": torch.zeros(2, 12, dtype=torch.long), "next_sentence_label": torch.zeros(2, 2, dtype=torch.long)},
        r"next_sentence_label \(2, 2\) must be \(2,\)",
    ),
    ("FNetForQuestionAnswering", {"start_positions": torch.zeros(3)}, r"start_positions \(3,\) must be \(2,\)"),
]


@pytest.mark.parametrize(("name", "labels", "message"), WRONG, ids=[f"{name}{i}" for i, (name, *_) in enumerate(WRONG)])
def test_labels_of_the_wrong_shape(name, labels, message, monkeypatch):
    _, model = pair(name)
    monkeypatch.setattr(model, "encode", lambda inputs: pytest.fail("worked before it checked"))
    with pytest.raises(ValueError, match=message):
        model(**batch(name, model.config), **labels)


def test_labels_of_the_wrong_type():
    _, model = pair("FNetForMaskedLM")
    with pytest.raises(TypeError, match=r"must be integers; they are torch\.float32"):
        model(**batch("FNetForMaskedLM", model.config), labels=torch.zeros(2, 12))


def test_unknown_problem_type():
    _, model = pair("FNetForSequenceClassification")
    model.config.__dict__["problem_type"] = "ranking"  # past the configuration's own check
    with pytest.raises(ValueError, match=r"problem_type .* 'ranking'"):
        model(**batch("FNetForSequenceClassification", model.config, labels=True))


def test_question_answering_needs_two_labels():
    """transformers builds the model and raises in its first forward."""
    with pytest.raises(ValueError, match=r"num_labels = 2, .*; it is 3"):
        ours.FNetForQuestionAnswering(config("FNetForQuestionAnswering", num_labels=3))
