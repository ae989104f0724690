"""BigBird's attention over blocks against transformers' own: lengths, plans of random blocks, padding, options."""

import numpy as np
import pytest
import torch

import encoders_fast.models as ours
from tests.closeness import assert_as_good_as, relative_error
from tests.models.model_cases import assert_outputs_as_good, batch, config, exact, pair

SPARSE = {"attention_type": "block_sparse", "max_position_embeddings": 4096}
BLOCKS_OF_4 = {**SPARSE, "block_size": 4, "num_random_blocks": 1}  # sparse from 4 * (5 + 2) + 1 = 29 tokens on
# Sparse from 16 * (5 + 6) + 1 = 177 tokens on.
BLOCKS_OF_16 = {**SPARSE, "block_size": 16, "num_random_blocks": 3, "num_attention_heads": 2}

LENGTHS = {
    "1024 of 4096": (BLOCKS_OF_16, 1024),  # 1024 tokens have the paper's plan, drawn for all positions
    "1024 of 1024": ({**BLOCKS_OF_16, "max_position_embeddings": 1024}, 1024),
    "1020": (BLOCKS_OF_16, 1020),  # filled up to 1024 they have that plan too
    "1088": (BLOCKS_OF_16, 1088),  # the plan of all other lengths
    "33": (BLOCKS_OF_4, 33),  # one token in the last block
    "32": (BLOCKS_OF_4, 32),  # no token more than blocks have
    "31": (BLOCKS_OF_4, 31),  # one less
    "29": (BLOCKS_OF_4, 29),  # the shortest that is sparse
    "28": (BLOCKS_OF_4, 28),  # the longest that is not
    "1": (BLOCKS_OF_4, 1),
    "two random blocks": ({**BLOCKS_OF_4, "num_random_blocks": 2}, 41),  # sparse from 4 * (5 + 4) + 1 = 37 tokens on
    "no bias": ({**BLOCKS_OF_4, "use_bias": False, "rescale_embeddings": True}, 45),
    "one head": ({**BLOCKS_OF_4, "num_attention_heads": 1}, 45),
    "blocks of 1": ({**BLOCKS_OF_4, "block_size": 1}, 11),
    "chunks": ({**BLOCKS_OF_4, "chunk_size_feed_forward": 12}, 48),
}


def _run(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options)


def _cut(tensors, T):
    """transformers' tensors [B, padded T, D] without the tokens that it fills the last block up with."""
    return tuple(tensor[:, :T] for tensor in tensors)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("options", "T"), LENGTHS.values(), ids=LENGTHS)
def test_length(options, T, train):
    """The outputs for T tokens, whatever the block; in training random blocks are drawn."""
    stock, model = (each.train(train) for each in pair("BigBirdModel", **options))
    inputs = batch("BigBirdModel", model.config, B=2 if T < 100 else 1, T=T)
    output, theirs, truth = (_run(each, inputs, output_hidden_states=True) for each in (model, stock, exact(stock)))
    assert all(h.shape[:2] == inputs["input_ids"].shape for h in output.hidden_states)
    for each in (theirs, truth):
        each["hidden_states"] = _cut(each.hidden_states, T)
    assert_outputs_as_good(output, theirs, truth)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["1024 of 1024", "33", "32", "29", "28", "two random blocks", "blocks of 1"])
def test_attentions(name, train):
    """Of T tokens too. Of a block that comes more than once they have one copy's part, as in transformers, where padded
    tokens have probabilities that nothing uses."""
    options, T = LENGTHS[name]
    stock, model = (each.train(train) for each in pair("BigBirdModel", **options))
    if T == 28:  # transformers has no attentions in the call that changes its type
        stock.set_attention_type("original_full")
    inputs = batch("BigBirdModel", model.config, B=2 if T < 100 else 1, T=T)
    real = inputs["attention_mask"][:, None, :, None]
    output, theirs = (_run(each, inputs, output_attentions=True) for each in (model, stock))
    for p, expected in zip(output.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(p * real, expected[:, :, :T, :T] * real, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(_run(model, inputs).last_hidden_state, output.last_hidden_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("options", "T"), [LENGTHS["1024 of 4096"], LENGTHS["1088"], LENGTHS["33"]], ids=str)
def test_gradients(options, T):
    stock, model = (each.train() for each in pair("BigBirdForMaskedLM", **options))
    inputs = batch("BigBirdForMaskedLM", model.config, labels=True, T=T)
    truth = exact(stock)
    for each in (stock, model, truth):
        each(**inputs).loss.backward()
    plain, right = dict(stock.named_parameters()), dict(truth.named_parameters())
    errors = []
    for key, parameter in model.named_parameters():
        if plain[key].grad is None:
            assert parameter.grad is None, key
        elif right[key].grad.norm() > 1e-10:  # a key's bias has no gradient: what is there is rounding
            errors.append([relative_error(each.grad, right[key].grad) for each in (parameter, plain[key])])
    mine, theirs = np.square(errors).sum(0)
    assert len(errors) > 30
    assert mine <= 2**2 * theirs


@pytest.mark.parametrize("where", ["left", "right", "whole blocks", "holes", "one sequence", "none"])
def test_padding(where):
    stock, model = pair("BigBirdModel", **BLOCKS_OF_4)
    B, T = 3, 46
    inputs = batch("BigBirdModel", model.config, B=B, T=T)
    mask = torch.ones(B, T, dtype=torch.long)
    if where == "left":
        mask[1, :5], mask[2, :30] = 0, 0
    elif where == "right":
        mask[0, -1], mask[1, -5:], mask[2, 1:] = 0, 0, 0
    elif where == "whole blocks":
        mask[:, :8], mask[1, 20:28], mask[2, 40:] = 0, 0, 0
    elif where == "holes":
        mask = (torch.rand(B, T) < 0.7).long()
    elif where == "one sequence":
        mask[1] = 0  # no token at all: its attention is zeros
    inputs["attention_mask"] = None if where == "none" else mask
    outputs = [_run(each, inputs) for each in (model, stock, exact(stock))]
    assert_outputs_as_good(*outputs)
    if where == "none":
        assert torch.equal(_run(model, {**inputs, "attention_mask": mask.bool()})[0], outputs[0][0])


def test_padding_cannot_be_seen():
    """Tokens behind the last real one change nothing before it, and a batch's rows do not depend on one another."""
    _, model = pair("BigBirdModel", **BLOCKS_OF_4)
    inputs = batch("BigBirdModel", model.config, T=46)
    inputs["attention_mask"][:] = 1
    inputs["attention_mask"][1, 30:] = 0
    h = _run(model, inputs).last_hidden_state
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 5)}
    assert torch.equal(_run(model, other).last_hidden_state[1, :30], h[1, :30])
    alone = {key: value[:1] for key, value in inputs.items()}
    torch.testing.assert_close(_run(model, alone).last_hidden_state, h[:1])


def test_short_input_leaves_the_type_as_it_is():
    """In transformers one short input makes attention full for ever."""
    _, model = pair("BigBirdModel", **BLOCKS_OF_4)
    long, short = (batch("BigBirdModel", model.config, T=T) for T in (40, 12))
    first = _run(model, long).last_hidden_state
    _run(model, short)
    assert model.attention_type == "block_sparse"
    assert torch.equal(_run(model, long).last_hidden_state, first)
    model.set_attention_type("original_full")
    assert not torch.allclose(_run(model, long).last_hidden_state, first, atol=1e-2)
    model.set_attention_type("block_sparse")
    assert torch.equal(_run(model, long).last_hidden_state, first)
    with pytest.raises(ValueError, match="attention_type must be original_full or block_sparse; it is 'sparse'"):
        model.set_attention_type("sparse")


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_numpys_generator_is_left_alone(train):
    """transformers seeds it in every forward pass of a training model."""
    _, model = pair("BigBirdModel", **{**BLOCKS_OF_4, "block_size": 3})
    np.random.seed(5)
    expected = np.random.rand(4)
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    _run(model.train(train), batch("BigBirdModel", model.config, T=50))
    assert (np.random.get_state()[1] == before).all()
    assert (np.random.rand(4) == expected).all()


def test_no_random_blocks():
    """transformers raises. What remains are window and global blocks, which for so many tokens is the dense formula."""
    options = {**BLOCKS_OF_4, "num_random_blocks": 0}  # sparse from 4 * 5 + 1 = 21 tokens on
    model = ours.BigBirdModel(config("BigBirdModel", **options)).eval()
    inputs = batch("BigBirdModel", model.config, T=30)
    with torch.no_grad():
        seen = model(**inputs, output_attentions=True).attentions[0][0, 0] > 0
        assert torch.equal(_run(model.train(), inputs)[0], _run(model.eval(), inputs)[0])
    blocks = torch.arange(30) // 4
    i, j = blocks[:, None], blocks
    assert torch.equal(seen, ((i - j).abs() <= 1) | (i == 0) | (j == 0) | (i == 7) | (j == 7))


def _truth_by_mask(model, inputs, patterns):
    """The model with full attention under each layer's multiplicities [H or 1, T, T], in float64."""
    full = ours.BigBirdModel(config("BigBirdModel", attn_implementation="eager")).eval()
    full.embeddings.position_embeddings = torch.nn.Embedding(*model.embeddings.position_embeddings.weight.shape)
    full.load_state_dict(model.state_dict())
    full.double()
    h = full.embeddings(inputs["input_ids"], inputs["token_type_ids"], full.embeddings.position_ids[:, :46], None)
    keys = inputs["attention_mask"][:, None, None].bool()
    for layer, counts in zip(full.encoder.layer, patterns, strict=True):
        attention = layer.attention.self
        q, k, v = (attention.split(linear(h)) for linear in (attention.query, attention.key, attention.value))
        scores = q @ k.mT / q.shape[-1] ** 0.5 + counts.double().log()
        probabilities = scores.masked_fill(~keys, -1e300).softmax(-1)
        context = (probabilities @ v).masked_fill(~keys.mT, 0).transpose(1, 2).flatten(2)
        h = layer.attention.output(context, h)
        h = layer.output(layer.intermediate(h), h)
    return h


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "options",
    [
        {"random_plan": "original"},
        {"random_plan": "anywhere"},
        {"random_plan": "anywhere", "window_blocks": 5, "global_blocks": [1, -2], "num_random_blocks": 0},
        {"random_plan": "anywhere", "extra_global_tokens": 8},
    ],
    ids=str,
)
def test_own_patterns(options, train):
    """Options that transformers does not have, against the dense formula under the op's own patterns."""
    from encoders_fast.models.big_bird_patterns import pattern_of

    _, model = pair("BigBirdModel", **BLOCKS_OF_4)
    own = ours.BigBirdModel(config("BigBirdModel", **{**BLOCKS_OF_4, **options})).train(train)
    own.load_state_dict(model.state_dict())
    inputs = batch("BigBirdModel", model.config, T=46)
    patterns = [pattern_of(own.config, 46, 46, i, train, torch.device("cpu")).dense() for i in range(2)]
    if options.get("num_random_blocks") != 0:
        assert not torch.equal(*patterns)  # each layer draws its own blocks
    with torch.no_grad():
        right = _truth_by_mask(model, inputs, patterns)
        output = own(**inputs).last_hidden_state
        assert relative_error(output, right) < 1e-6
        assert relative_error(_run(model, inputs).last_hidden_state, right) > 0.01


WRONG = [
    ({"attention_type": "sparse"}, "attention_type must be original_full or block_sparse; it is 'sparse'"),
    ({"random_plan": "mine"}, 'random_plan must be "transformers", "original" or "anywhere"; it is \'mine\''),
    ({"window_blocks": 5}, r"\{'window_blocks': 5\} need random_plan=\"anywhere\"; it is 'transformers'"),
    ({"random_plan": "anywhere", "is_decoder": True}, 'random_plan="anywhere" is for encoders'),
    ({"block_size": 0}, "block_size must be at least 1, num_random_blocks at least 0; they are 0, 1"),
    ({"num_attention_heads": 5}, "hidden_size 32 must be a multiple of num_attention_heads 5"),
    ({"add_cross_attention": True}, "add_cross_attention=True is for a decoder"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_wrong_configuration(options, message):
    with pytest.raises(ValueError, match=message):
        ours.BigBirdModel(config("BigBirdModel", **{**BLOCKS_OF_4, **options}))


def test_options_of_this_library_are_saved_only_where_they_are_used(tmp_path):
    config("BigBirdModel").save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    for name in ("causal", "random_plan", "window", "global", "sparse_dropout", "beside", "pruned"):
        assert name not in text
    own = {"causal_block_sparse": False, "random_plan": "anywhere", "global_blocks": [0], "block_sparse_dropout": True}
    config("BigBirdModel", **own).save_pretrained(tmp_path)
    loaded = ours.BigBirdConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in own} == own
    assert loaded.window_blocks == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("T", [12, 46])
def test_half_precision(dtype, T):
    stock, model = pair("BigBirdModel", dtype, **BLOCKS_OF_4)
    inputs = batch("BigBirdModel", model.config, T=T)
    output, plain, right = (_run(each, inputs).last_hidden_state for each in (model, stock, exact(stock)))
    assert_as_good_as(output, plain, right)


def test_dropout_of_sparse_attention():
    """transformers has none there; an option takes the probability of full attention."""
    dropping = {**BLOCKS_OF_4, "attention_probs_dropout_prob": 0.5}
    inputs = batch("BigBirdModel", config("BigBirdModel", **dropping), T=40)
    _, model = pair("BigBirdModel", **dropping)
    _, plain = pair("BigBirdModel", **BLOCKS_OF_4)
    assert torch.equal(_run(model.train(), inputs)[0], _run(plain.train(), inputs)[0])
    model.config.block_sparse_dropout = True
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(_run(model, inputs)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-2)
    assert torch.equal(_run(model.eval(), inputs)[0], _run(plain.eval(), inputs)[0])
