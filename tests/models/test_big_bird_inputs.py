"""What BigBird takes, what its heads do their own way, and how it refuses what it cannot take."""

import pytest
import torch
import transformers
from torch.nn import functional as F

import encoders_fast.models as ours
from tests.closeness import relative_error
from tests.models.model_cases import MODELS, assert_outputs_as_good, batch, config, exact, pair, randomize
from tests.models.test_big_bird import BLOCKS_OF_4

B, T, D = 2, 12, 32
NAMES = [name for name in MODELS if name.startswith("BigBird")]
TYPES = {"original_full": (T, {}), "block_sparse": (46, BLOCKS_OF_4)}


def _ids(*shape):
    return torch.randint(4, 99, shape)


def _wide(inputs):
    return {k: v.double() if v is not None and v.is_floating_point() else v for k, v in inputs.items()}


def _compare(stock, model, inputs):
    with torch.no_grad():
        assert_outputs_as_good(model(**inputs), stock(**inputs), exact(stock)(**_wide(inputs)))


INPUTS = {
    "ids only": lambda T: {"input_ids": _ids(B, T)},
    "int32 ids": lambda T: {"input_ids": _ids(B, T).int()},
    "embeddings": lambda T: {"inputs_embeds": torch.randn(B, T, D)},
    "positions": lambda T: {"input_ids": _ids(B, T), "position_ids": torch.randint(0, 64, (B, T))},
    "positions for all": lambda T: {"input_ids": _ids(B, T), "position_ids": torch.randperm(64)[None, :T]},
    "everything": lambda T: {
        "inputs_embeds": torch.randn(B, T, D),
        "attention_mask": torch.ones(B, T).index_fill(1, torch.tensor([3, T - 1]), 0),
        "token_type_ids": torch.randint(0, 3, (B, T)),
        "position_ids": torch.randint(0, 64, (B, T)),
    },
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_inputs(make, kind):
    tokens, options = TYPES[kind]
    stock, model = pair("BigBirdModel", **options)
    _compare(stock, model, make(tokens))


def test_masks_of_pairs():
    """Full attention takes them. A lower triangle makes a decoder of the encoder."""
    stock, _ = pair("BigBirdForCausalLM")
    model = ours.BigBirdModel(config("BigBirdModel")).eval()
    model.load_state_dict(stock.bert.state_dict())
    mask = torch.ones(B, 1, T, T, dtype=torch.bool).tril()
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    ids = _ids(B, T)
    with torch.no_grad():
        right = stock.bert(ids).last_hidden_state
        for given in (mask, mask.long(), mask[:, 0], added):
            torch.testing.assert_close(model(ids, attention_mask=given).last_hidden_state, right, rtol=1e-4, atol=1e-4)


def test_empty_batch_and_one_token():
    for tokens, options in TYPES.values():
        model = ours.BigBirdModel(config("BigBirdModel", **options)).eval()
        assert model(_ids(0, tokens)).last_hidden_state.shape == (0, tokens, D)
        assert model(_ids(2, 1)).last_hidden_state.isfinite().all()


def test_input_without_contiguous_memory():
    _, model = pair("BigBirdModel", **BLOCKS_OF_4)
    embeddings = torch.randn(46, B, D).transpose(0, 1)
    assert torch.equal(model(inputs_embeds=embeddings)[0], model(inputs_embeds=embeddings.contiguous())[0])


@pytest.mark.parametrize("name", NAMES)
def test_keywords(name):
    _, model = pair(name)
    inputs = batch(name, model.config)
    model(**inputs, num_items_in_batch=torch.tensor(3))
    with pytest.raises(TypeError, match="BigBirdModel has no argument 'token_types'"):
        model(**inputs, token_types=inputs["token_type_ids"])


WRONG = [
    ({}, ValueError, "either input_ids or inputs_embeds; neither"),
    ({"input_ids": _ids(B, T), "inputs_embeds": torch.randn(B, T, D)}, ValueError, "inputs_embeds; both"),
    ({"input_ids": _ids(T)}, ValueError, r"input_ids must be \[batch, tokens\]; its shape is \(12,\)"),
    ({"inputs_embeds": torch.randn(B, T, 31)}, ValueError, r"inputs_embeds \(2, 12, 31\) must have .* width, 32"),
    ({"input_ids": _ids(B, 65)}, ValueError, "sequences have 65 tokens, the model has 64 positions"),
    ({"input_ids": torch.randn(B, T)}, TypeError, r"input_ids must be int64 or int32; they are torch\.float32"),
    ({"input_ids": _ids(B, T), "token_type_ids": _ids(B, 11)}, ValueError, r"token_type_ids \(2, 11\) must be \(2, 12"),
    ({"input_ids": _ids(B, T), "head_mask": torch.ones(3)}, ValueError, r"head_mask \(3,\) must be \(4,\) or \(2, 4\)"),
    ({"input_ids": _ids(B, T), "attention_mask": torch.ones(B, 11)}, ValueError, r"attention_mask \(2, 11\) must be"),
    (
        {"input_ids": _ids(B, 46), "attention_mask": torch.ones(B, 46, 46)},
        ValueError,
        r"attention_mask \(2, 46, 46\) must be \[batch, tokens\] for block_sparse attention",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[message[:24] for *_, message in WRONG])
def test_wrong_inputs(wrong, error, message):
    model = ours.BigBirdModel(config("BigBirdModel", **{**BLOCKS_OF_4, "max_position_embeddings": 64}))
    with pytest.raises(error, match=message):
        model(**wrong)


# ---- head masks and pruned heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", TYPES)
def test_masked_heads(kind, train):
    """A factor for a head is a factor for its part of the context: what dense[:, head] has of it. Gradients too."""
    tokens, options = TYPES[kind]
    _, model = pair("BigBirdModel", torch.float64, **options)
    inputs = batch("BigBirdModel", model.config, T=tokens)
    mask = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    output = model.train(train)(**inputs, head_mask=mask, output_attentions=True)
    without = model(**inputs, output_attentions=True)
    torch.testing.assert_close(output.attentions[0], without.attentions[0] * mask[0, :, None, None])
    output.last_hidden_state.square().sum().backward()
    given = mask.grad
    scaled = mask.detach().clone().requires_grad_()
    weights = [layer.attention.output.dense.weight.detach().clone() for layer in model.encoder.layer]
    for i, layer in enumerate(model.encoder.layer):
        del layer.attention.output.dense.weight
        layer.attention.output.dense.weight = weights[i] * scaled[i].repeat_interleave(8)
    right = model(**inputs).last_hidden_state
    right.square().sum().backward()
    torch.testing.assert_close(output.last_hidden_state, right)
    torch.testing.assert_close(given, scaled.grad)


def test_one_mask_for_all_layers():
    _, model = pair("BigBirdModel", **BLOCKS_OF_4)
    inputs = batch("BigBirdModel", model.config, T=46)
    mask = torch.tensor([1.0, 0.0, 0.5, 2.0])
    same = model(**inputs, head_mask=mask.expand(2, 4)).last_hidden_state
    assert torch.equal(model(**inputs, head_mask=mask).last_hidden_state, same)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", TYPES)
def test_pruned_heads(kind, train, tmp_path):
    """What is pruned is as if it were masked; the heads that stay keep their random blocks."""
    tokens, options = TYPES[kind]
    _, model = pair("BigBirdForMaskedLM", torch.float64, **options)
    inputs = batch("BigBirdForMaskedLM", model.config, T=tokens)
    mask = torch.tensor([[1.0, 0, 0, 2], [0.5, 1, 1, 0]], dtype=torch.float64)
    model.train(train)
    right = model(**inputs, head_mask=mask).logits
    model.prune_heads({0: [1], 1: [3]})
    model.prune_heads({0: [2]})
    torch.testing.assert_close(model(**inputs, head_mask=mask).logits, right)
    assert model.bert.encoder.layer[0].attention.self.query.weight.shape == (16, 32)
    model.save_pretrained(tmp_path)
    loaded = ours.BigBirdForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64).train(train)
    torch.testing.assert_close(loaded(**inputs, head_mask=mask).logits, right)


# ---- heads -----------------------------------------------------------------------------------------------------------


def _questions(separator=66, tokens=T):
    ids = _ids(B, tokens)
    ids[ids == separator] = 5
    ids[0, 4], ids[0, -1], ids[1, 6] = separator, separator, separator
    return ids


QUESTIONS = {
    "given": lambda: {"input_ids": _ids(B, T), "question_lengths": torch.tensor([[3], [5]])},
    "inferred": lambda: {"input_ids": _questions()},
    "none": lambda: {"input_ids": _ids(B, T).clamp(max=60)},
    "with types": lambda: {"input_ids": _questions(), "token_type_ids": torch.randint(0, 3, (B, T))},
    "embeddings": lambda: {"inputs_embeds": torch.randn(B, T, D)},
    "embeddings and lengths": lambda: {
        "inputs_embeds": torch.randn(B, T, D),
        "question_lengths": torch.tensor([[3], [5]]),
    },
}


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("make", QUESTIONS.values(), ids=QUESTIONS)
def test_questions(make, positions):
    """The errors are those of the logits that are not 1e6 below."""
    stock, model = pair("BigBirdForQuestionAnswering")
    inputs = make()
    if positions:  # the second span ends behind the sequence
        inputs |= {"start_positions": torch.tensor([[7], [8]]), "end_positions": torch.tensor([[9], [T + 3]])}
    with torch.no_grad():
        outputs = [
            dict(each(**given)) for each, given in ((model, inputs), (stock, inputs), (exact(stock), _wide(inputs)))
        ]
    masked = [output["start_logits"] < -1e5 for output in outputs]
    assert torch.equal(masked[0], masked[1])
    assert masked[0].any() == (not {"none", "embeddings"} & {key for key, value in QUESTIONS.items() if value is make})
    for output in outputs:
        for key in ("start_logits", "end_logits"):
            output[key] = output[key].masked_fill(masked[0], -10.0)
    assert_outputs_as_good(*outputs)


def test_question_lengths_in_one_dimension():
    _, model = pair("BigBirdForQuestionAnswering")
    ids, lengths = _ids(B, T), torch.tensor([3, 5])
    with torch.no_grad():
        flat, column = model(ids, question_lengths=lengths), model(ids, question_lengths=lengths[:, None])
    assert torch.equal(flat.start_logits, column.start_logits)
    with pytest.raises(ValueError, match=r"question_lengths \(3,\) must be \(2,\) or \(2, 1\)"):
        model(ids, question_lengths=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_question_cannot_answer_in_half_precision(dtype):
    stock, model = pair("BigBirdForQuestionAnswering", dtype)
    with torch.no_grad():
        output, theirs = (each(_questions()) for each in (model, stock))
    assert output.start_logits.dtype == theirs.start_logits.dtype == torch.float32
    assert (output.start_logits[0, 1:5] < -1e5).all()
    assert (output.start_logits[0, [0, 5, 6]] > -1e3).all()


def test_question_answering_with_a_pooler():
    for library in (transformers, ours):
        model = library.BigBirdForQuestionAnswering(config("BigBirdForQuestionAnswering", library, num_labels=5), True)
        assert model.config.num_labels == 2
        output = model(_questions())
        assert output.pooler_output.shape == (B, D)
        assert list(output) == ["start_logits", "end_logits", "pooler_output"]


def test_labels_of_one_task_of_two():
    stock, model = pair("BigBirdForPreTraining")
    inputs = batch("BigBirdForPreTraining", model.config, labels=True)
    _compare(stock, model, {key: value for key, value in inputs.items() if key != "next_sentence_label"})
    inputs.pop("labels")
    assert model(**inputs).loss is None
    assert stock(**inputs).loss is None


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("regression", torch.randn(B, 3)),
        ("single_label_classification", torch.tensor([2, 0])),
        ("multi_label_classification", torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
    ],
)
@pytest.mark.parametrize("said", [True, False])
def test_problem_type(kind, labels, said):
    if kind == "regression" and not said:
        labels, options = torch.randn(B), {"num_labels": 1}
    else:
        options = {"num_labels": 3}
    stock, model = pair("BigBirdForSequenceClassification", problem_type=kind if said else None, **options)
    inputs = batch("BigBirdForSequenceClassification", model.config)
    _compare(stock, model, {**inputs, "labels": labels})
    assert model.config.problem_type == kind


@pytest.mark.parametrize("function", [F.relu, torch.tanh], ids=["relu", "tanh"])
def test_activation_by_callable(function):
    """In the layers, the language head and the classifier. transformers' classifier takes names only."""
    for name in ("BigBirdForMaskedLM", "BigBirdForSequenceClassification", "BigBirdForQuestionAnswering"):
        stock, _ = pair(name, hidden_act={F.relu: "relu", torch.tanh: "tanh"}[function])
        model = getattr(ours, name)(config(name, hidden_act=function)).eval()
        model.load_state_dict(stock.state_dict())
        _compare(stock, model, batch(name, model.config))


def test_token_loss_of_a_causal_language_model():
    """The count that Trainer gives divides the sum."""
    stock, model = pair("BigBirdForCausalLM")
    inputs = batch("BigBirdForCausalLM", model.config, labels=True)
    for items in (None, torch.tensor(40)):
        mine, theirs = (each(**inputs, num_items_in_batch=items).loss for each in (model, stock))
        torch.testing.assert_close(mine, theirs)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_gradient_checkpointing_draws_the_same_again(kind, reentrant):
    """Random blocks, and what dropout drops."""
    tokens, options = TYPES[kind]
    dropping = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, **options}
    _, model = pair("BigBirdForMaskedLM", **dropping)
    twin = ours.BigBirdForMaskedLM(config("BigBirdForMaskedLM", **dropping))
    twin.load_state_dict(model.state_dict())
    for layer in twin.bert.encoder.layer:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda function, *args: torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=reentrant
        )
    inputs = batch("BigBirdForMaskedLM", model.config, labels=True, T=tokens)
    for each in (model, twin):
        torch.manual_seed(0)
        each.train()(**inputs).loss.backward()
    for (key, parameter), other in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(other[1].grad, parameter.grad, msg=key)


def test_dropout_rates():
    """Every dropout of a layer drops what it should: the mean over many tokens stays."""
    model = ours.BigBirdModel(config("BigBirdModel", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)).train()
    randomize(model)
    inputs = batch("BigBirdModel", model.config, B=4)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(**inputs).last_hidden_state)
    assert torch.equal(outputs[0], outputs[1])
    assert relative_error(outputs[2], outputs[0]) > 0.1
    layer = model.encoder.layer[0]
    x = torch.randn(64, 32)
    layer.output.dropout.p = 0.0
    torch.testing.assert_close(layer.output.add(x, x, None), layer.output.LayerNorm(x + x))
    layer.output.dropout.p = 1.0
    torch.testing.assert_close(layer.output.add(x, x, None), layer.output.LayerNorm(x))
