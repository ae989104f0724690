"""RoBERTa-PreLayerNorm and XLM-RoBERTa-XL: what goes in, what hooks see, dropout, heads that are taken out."""

import copy

import pytest
import torch
import transformers

import encoders_fast.models as ours
from encoders_fast._dispatch import record, tables
from tests.closeness import assert_as_good_as, relative_error
from tests.models.model_cases import batch, config, exact, pair, randomize, tensors

FAMILIES = ("RobertaPreLayerNorm", "XLMRobertaXL")
MODELS = [f"{family}Model" for family in FAMILIES]
DROPOUTS = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
OPS = {"residual_layer_norm", "block_sparse_attention"}

renamed = hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
CHECKPOINTING = "activation_checkpointing" if renamed else "gradient_checkpointing"


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def encode(model, **inputs):
    return model(**inputs).last_hidden_state


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "encoders_fast"])
@pytest.mark.parametrize("name", MODELS)
def test_every_dtype_and_attention(name, implementation, dtype):
    """Five layers, tokens that stand out, padding."""
    stock, model = pair(name, dtype, num_hidden_layers=5)
    model.set_attn_implementation(implementation)
    inputs = batch(name, model.config)
    with torch.no_grad():
        for each in (stock, model):
            each.get_input_embeddings().weight[7] *= 30
        inputs["input_ids"][:, 3] = 7
        shown = inputs["attention_mask"].bool()
        results = [encode(each, **inputs)[shown] for each in (model, stock, exact(stock))]
    assert_as_good_as(*results)


@pytest.mark.parametrize("name", MODELS)
def test_masks(name):
    """Of two, three and four dimensions, as transformers where it takes them; padding changes nothing."""
    stock, model = pair(name)
    ids = torch.randint(3, 99, (2, 8))
    padding = torch.ones(2, 8, dtype=torch.long)
    padding[1, 5:] = 0
    ids[1, 5:] = 1
    pairs = (torch.rand(2, 1, 8, 8) > 0.4) | torch.eye(8, dtype=torch.bool)
    numbers = torch.zeros(pairs.shape).masked_fill(~pairs, torch.finfo(torch.float32).min)
    with torch.no_grad():
        for mask in (padding, padding.bool(), padding.float(), numbers, pairs):
            assert_close(
                encode(model, input_ids=ids, attention_mask=mask), encode(stock, input_ids=ids, attention_mask=mask)
            )
        for mask in (pairs[:, 0], pairs[:, 0].float(), pairs.int()):
            expected = encode(model, input_ids=ids, attention_mask=pairs)
            assert_close(encode(model, input_ids=ids, attention_mask=mask), expected)
        alone = encode(model, input_ids=ids[1:, :5])
        assert_close(encode(model, input_ids=ids, attention_mask=padding)[1:, :5], alone)
        padding[0] = 0
        assert encode(model, input_ids=ids, attention_mask=padding).isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_inputs(name):
    """Embeddings in place of ids, positions, no token types, ids without a batch of their own, strides."""
    stock, model = pair(name)
    ids = torch.randint(0, 99, (2, 8))
    ids[1, 6:] = 1
    embeds = torch.randn(8, 2, 32).transpose(0, 1)
    assert not embeds.is_contiguous()
    positions = torch.randint(0, 64, (1, 8))
    for inputs in (
        {"input_ids": ids},
        {"input_ids": ids.int()},
        {"input_ids": ids, "position_ids": positions},
        {"inputs_embeds": embeds},
        {"inputs_embeds": embeds, "position_ids": positions.expand(2, -1)},
        {"input_ids": ids[:, :1]},
    ):
        with torch.no_grad():
            assert_close(encode(model, **inputs), encode(stock, **inputs))
    assert encode(model, input_ids=ids[:0]).shape == (0, 8, 32)
    assert_close(
        encode(model, input_ids=ids, position_ids=positions[0]), encode(stock, input_ids=ids, position_ids=positions)
    )


WRONG = [
    ({}, ValueError, "neither are there"),
    ({"input_ids": torch.zeros(2, 3)}, TypeError, "input_ids must be int64 or int32"),
    ({"input_ids": torch.zeros(3, dtype=torch.long)}, ValueError, r"input_ids must be \[batch, tokens\]"),
    ({"inputs_embeds": torch.zeros(2, 3, 31)}, ValueError, r"\(2, 3, 31\) must have the model's width, 32"),
    ({"input_ids": 3, "head_mask": torch.ones(3)}, ValueError, r"head_mask \(3,\) must be \(4,\) or \(2, 4\)"),
    ({"input_ids": 3, "attention_mask": torch.ones(2, 4)}, ValueError, r"attention_mask \(2, 4\) must be \(2, 3\)"),
    ({"input_ids": 3, "position_ids": torch.full((2, 3), 64)}, ValueError, "the last position is 64"),
    ({"input_ids": 63}, ValueError, "room for 62 tokens"),
    ({"input_ids": 3, "atention_mask": torch.ones(2, 3)}, TypeError, "Model has no argument 'atention_mask'"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), WRONG, ids=[message[:30] for *_, message in WRONG])
@pytest.mark.parametrize("name", MODELS)
def test_wrong_inputs(name, inputs, error, message, monkeypatch):
    _, model = pair(name)
    monkeypatch.setattr(model.encoder, "forward", lambda *args: pytest.fail("worked before it checked"))
    if isinstance(inputs.get("input_ids"), int):  # so many tokens
        inputs = inputs | {"input_ids": torch.full((2, inputs["input_ids"]), 5)}
    with pytest.raises(error, match=message):
        model(**inputs)


@pytest.mark.parametrize("name", MODELS)
def test_padding_needs_no_positions(name):
    """63 tokens, one of them padding, are as many as there is room for."""
    stock, model = pair(name)
    ids = torch.full((2, 63), 5)
    ids[:, -1] = 1
    with torch.no_grad():
        assert_close(encode(model, input_ids=ids), encode(stock, input_ids=ids))


def test_a_misspelt_keyword_of_a_head():
    for suffix in ("ForCausalLM", "ForMaskedLM", "ForQuestionAnswering", "ForMultipleChoice"):
        name = f"XLMRobertaXL{suffix}"
        _, model = pair(name)
        with pytest.raises(TypeError, match="no argument 'lables'"):
            model(**batch(name, model.config), lables=None)


def test_position_embedding_type():
    with pytest.raises(ValueError, match="must be one of absolute, relative_key, relative_key_query; it is 'rotary'"):
        ours.XLMRobertaXLModel(config("XLMRobertaXLModel", position_embedding_type="rotary"))
    model = ours.XLMRobertaXLModel(config("XLMRobertaXLModel", position_embedding_type="relative_key"))
    assert model.encoder.layer[0].attention.self.distance_embedding.weight.shape == (127, 8)
    model(torch.randint(3, 99, (1, 64)))
    with pytest.raises(ValueError, match="the sequences have 65 tokens, the model has distances for 64"):
        model(torch.randint(3, 99, (1, 65)))


@pytest.mark.parametrize("name", MODELS)
def test_options_that_transformers_lacks_are_saved_where_they_are_set(name, tmp_path):
    plain = config(name, keep_padding=False)
    assert set(plain.to_dict()) == set(config(name, transformers).to_dict())
    own = {
        "position_embedding_type": "relative_key",
        "exact_positions": True,
        "pruned_heads": {1: [0, 2]},
        "keep_padding": True,
    }
    assert set(config(name, **own).to_dict()) - set(plain.to_dict()) == set(own) - set(plain.to_dict())
    model = getattr(ours, name)(config(name, **own))
    randomize(model)
    model.save_pretrained(tmp_path)
    loaded = getattr(ours, name).from_pretrained(tmp_path)
    ids = torch.randint(3, 99, (2, 6))
    assert_close(encode(loaded, input_ids=ids), encode(model.eval(), input_ids=ids))
    assert loaded.encoder.layer[1].attention.self.query.out_features == 16
    assert {option: getattr(loaded.config, option) for option in own} == own


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("name", MODELS)
def test_chunks(name, chunk):
    _, model = pair(name, **DROPOUTS)
    _, chunked = pair(name, chunk_size_feed_forward=chunk, **DROPOUTS)
    inputs = batch(name, model.config)
    for train in (False, True):
        torch.manual_seed(1)
        expected = encode(model.train(train), **inputs)
        torch.manual_seed(1)
        assert_close(encode(chunked.train(train), **inputs), expected)


def test_loss_without_padding():
    """XLM-RoBERTa-XL's token classification counts no token that attention_mask hides; the other family's does."""
    for family, counts in (("XLMRobertaXL", False), ("RobertaPreLayerNorm", True)):
        name = f"{family}ForTokenClassification"
        stock, model = pair(name)
        inputs = batch(name, model.config, labels=True)
        other = {**inputs, "labels": inputs["labels"].clone()}
        other["labels"][1, -1] = (other["labels"][1, -1] + 1) % 3
        assert_close(model(**inputs).loss, stock(**inputs).loss)
        assert (model(**inputs).loss != model(**other).loss) == counts


# ---- ops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [f"{family}ForMaskedLM" for family in FAMILIES])
def test_backend_of_each_layer(name, dtype, train):
    """Two sums a layer, each one op with the LayerNorm behind it, and attention."""
    _, model = pair(name, dtype, num_hidden_layers=3, **DROPOUTS)
    model.set_attn_implementation("encoders_fast")
    inputs = batch(name, model.config, labels=True)
    with record() as calls, torch.set_grad_enabled(train):
        loss = model.train(train)(**inputs).loss
    expected = {op: _first_able(op) for op in OPS}
    layer = [("block_sparse_attention", expected["block_sparse_attention"])]
    layer += [("residual_layer_norm", expected["residual_layer_norm"])] * 2
    assert _own(calls) == layer * 3
    if train:
        with record() as calls:
            loss.backward()
        assert sorted(_own(calls)) == sorted(layer * 3)


def _own(calls):
    """Without the linear layers, which test_projections.py is about."""
    return [call for call in calls if call[0] != "packed_linear"]


def _first_able(op):
    """The only backend that there is, or the one that this machine has a kernel for."""
    return next(backend.name for backend in tables()[op] if backend.name in ("cpu", "reference"))


@pytest.mark.parametrize("name", [f"{family}ForCausalLM" for family in FAMILIES])
def test_ops_of_a_decoder(name):
    _, model = pair(name, add_cross_attention=True, num_hidden_layers=2)
    states = torch.randn(2, 5, 32)
    with record() as calls:
        model(**batch(name, model.config), encoder_hidden_states=states)
    assert [op for op, _ in _own(calls)] == ["residual_layer_norm"] * 6


# ---- hooks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_hooks_see_what_transformers_shows(name):
    """Every module's hook is called with what the module of transformers returns, and the result stays as it is."""
    stock, model = pair(name)
    inputs = batch(name, model.config)
    expected = encode(model, **inputs)
    names = [
        key
        for key, module in stock.named_modules()
        if key and key != "encoder" and not isinstance(module, torch.nn.ModuleList) and key != "pooler.activation"
    ]
    theirs, mine = _watched(stock, names, inputs), _watched(model, names, inputs)
    for key in names:
        if key.endswith("attention.self.dropout"):
            continue  # the probability is all that is taken of it
        assert set(mine[key]) == {torch.Tensor}, key
        for value, other in zip(mine[key].values(), theirs[key].values(), strict=True):
            assert_close(value, other)
    for key in names:  # one at a time
        if not key.endswith("attention.self.dropout"):
            ((value,),) = (found.values() for found in _watched(model, [key], inputs).values())
            assert_close(value, *theirs[key].values())
    assert torch.equal(encode(model, **inputs), expected)


def _watched(model, names, inputs):
    seen = {}

    def watch(key):
        def hook(module, args, output):
            first = output[0] if isinstance(output, tuple) else output
            seen.setdefault(key, {})[type(first)] = first

        return hook

    handles = [model.get_submodule(key).register_forward_hook(watch(key)) for key in names]
    encode(model, **inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("where", ["encoder.layer.1", "encoder.layer.0", "encoder.layer.1.attention"])
@pytest.mark.parametrize("name", MODELS)
def test_hooks_may_change_what_goes_in(name, where):
    results = []
    for model in pair(name):
        model.get_submodule(where).register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
        results.append(encode(model, **batch(name, model.config)))
    assert_close(*results)


@pytest.mark.parametrize("name", MODELS)
def test_another_module_in_place_of_a_layer_norm(name):
    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, h):
            return 2 * self.inner(h)

    results = []
    for model in pair(name):
        owner, norm = (
            (model.encoder.layer[1].attention, "LayerNorm")
            if name.startswith("RobertaPre")
            else (model.encoder.layer[1], "LayerNorm")
        )
        setattr(owner, norm, Doubled(getattr(owner, norm)))
        model.encoder.layer[0].output.dense.forward = lambda x: x[..., :32]
        results.append(encode(model, **batch(name, model.config)))
    assert_close(*results)


# ---- dropout and checkpointing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
@pytest.mark.parametrize("name", MODELS)
def test_dropout_drops(name, site):
    _, model = pair(name, **{site: 0.3})
    inputs = batch(name, model.config)

    def run(seed, train=True):
        torch.manual_seed(seed)
        return encode(model.train(train), **inputs)

    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2), rtol=0.1)
    assert torch.equal(run(1, False), run(2, False))


def test_xlm_roberta_xl_drops_nothing_behind_its_feed_forward_block():
    """With attention's output out of the way, the layer is the same in training and in evaluation."""
    for name, drops in (("XLMRobertaXLModel", False), ("RobertaPreLayerNormModel", True)):
        _, model = pair(name, num_hidden_layers=1, hidden_dropout_prob=0.3)
        model.embeddings.dropout.p = model.encoder.layer[0].attention.output.dropout.p = 0.0
        inputs = batch(name, model.config)
        calm = encode(model, **inputs)
        assert torch.allclose(encode(model.train(), **inputs), calm, atol=1e-5) != drops


@pytest.mark.parametrize("name", MODELS)
def test_rate_and_scale(name):
    """What is dropped of the attention's output: h - LayerNorm's input shows it."""
    _, model = pair(name, num_hidden_layers=1, hidden_dropout_prob=0.25, hidden_size=128)
    layer = model.train().encoder.layer[0]
    model.embeddings.dropout.p = 0.0
    torch.nn.init.zeros_(layer.attention.output.dense.weight)
    torch.nn.init.ones_(layer.attention.output.dense.bias)
    layer.output.dense.weight.data.zero_()
    layer.output.dense.bias.data.zero_()
    inputs = batch(name, model.config, B=8, T=48)
    before = model.embeddings(
        inputs["input_ids"],
        inputs["token_type_ids"],
        model.positions(None, None, inputs["input_ids"], inputs["input_ids"], 0),
        None,
    )
    grabbed = {}
    layer.register_forward_hook(lambda module, args, output: grabbed.update(h=output))
    model(**inputs)
    added = grabbed["h"] - before
    dropped = added.abs() < 1e-4
    assert abs(dropped.float().mean().item() - 0.25) < 0.01
    assert_close(added[~dropped], torch.full_like(added[~dropped], 4 / 3))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "encoders_fast"])
@pytest.mark.parametrize("name", [f"{family}ForCausalLM" for family in FAMILIES])
def test_checkpointing(name, implementation, reentrant):
    """The same gradients, dropout and cross attention included, and no cache."""
    _, model = pair(name, add_cross_attention=True, num_hidden_layers=3, **DROPOUTS)
    model.set_attn_implementation(implementation)
    twin = copy.deepcopy(model)
    getattr(twin, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}})
    inputs = batch(name, model.config)
    results = []
    for each in (model, twin):
        states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        head_mask = torch.full((3, 4), 0.9, requires_grad=True)
        torch.manual_seed(0)
        output = each.train()(**inputs, encoder_hidden_states=states, head_mask=head_mask)
        with record() as calls:
            output.logits.square().mean().backward()
        gradients = {key: parameter.grad for key, parameter in each.named_parameters()}
        results.append((output.logits, states.grad, head_mask.grad, gradients))
    assert len(calls) > 9  # the layers ran again
    assert output.past_key_values is None
    (*plain, gradients), (*checkpointed, others) = results
    for expected, value in zip(plain, checkpointed, strict=True):
        assert_close(value, expected)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-4, atol=1e-5, msg=key)
    with pytest.raises(ValueError, match="together with gradient checkpointing"):
        twin(**inputs, past_key_values=((torch.zeros(2, 4, 3, 8),) * 2,) * 3)


# ---- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "encoders_fast"])
@pytest.mark.parametrize("name", MODELS)
def test_pruned_heads_are_masked_heads(name, implementation):
    _, model = pair(name)
    model.set_attn_implementation(implementation)
    inputs = batch(name, model.config)
    mask = torch.ones(2, 4)
    mask[0, 1] = mask[0, 3] = mask[1, 0] = 0
    masked = encode(model, **inputs, head_mask=mask)
    assert not torch.allclose(masked, encode(model, **inputs), rtol=1e-2)
    model.prune_heads({0: [1]})
    model.prune_heads({0: [1, 3], 1: [0]})
    assert model.config.pruned_heads == {0: [1, 3], 1: [0]}
    assert_close(encode(model, **inputs), masked)
    # A mask still counts all heads.
    mask = torch.tensor([[1.0, 1, 0.5, 1], [1, 0, 1, 1]])
    halved = encode(model, **inputs, head_mask=mask)
    model.prune_heads({1: [1]})
    mask[1, 1] = 1
    assert_close(encode(model, **inputs, head_mask=mask), halved)


def test_heads_that_cannot_be_pruned(tmp_path):
    _, model = pair("XLMRobertaXLForSequenceClassification")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for heads, message in (
        ({2: [0]}, "there is no layer 2 to prune; the model has 2"),
        ({0: [1], 1: [4]}, r"layer 1 has the heads 0 to 3; \[4\] cannot be pruned"),
        ({0: [0, 1, 2, 3]}, "layer 0 would have no head left"),
    ):
        with pytest.raises(ValueError, match=message):
            model.prune_heads(heads)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.prune_heads({0: [0, 1, 2]})
    model.save_pretrained(tmp_path)
    loaded = ours.XLMRobertaXLForSequenceClassification.from_pretrained(tmp_path)
    inputs = batch("XLMRobertaXLForSequenceClassification", model.config)
    assert_close(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_a_head_mask(name):
    """By every implementation the same, and that of its definition."""
    gradients = []
    for implementation in ("eager", "sdpa", "encoders_fast"):
        _, model = pair(name)
        model.set_attn_implementation(implementation)
        mask = torch.tensor([0.5, 1.0, 0.0, 2.0], requires_grad=True)
        output = model(**batch(name, model.config), head_mask=mask)
        torch.cat([value.flatten() for _, value in tensors(output)]).square().sum().backward()
        gradients.append(mask.grad)
    for gradient in gradients[1:]:
        assert relative_error(gradient, gradients[0]) < 1e-4
    assert gradients[0].abs().min() > 0
