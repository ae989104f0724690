"""BigBird as a decoder: causal with both types of attention, with a cache, beside an encoder, generating."""

import pytest
import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import encoders_fast.models as ours
from tests.closeness import relative_error
from tests.models.model_cases import assert_outputs_as_good, batch, config, exact, pair, randomize
from tests.models.test_big_bird import BLOCKS_OF_4

NAME = "BigBirdForCausalLM"
FULL = {"is_decoder": True}
SPARSE = {**BLOCKS_OF_4, "is_decoder": True}  # sparse from 29 tokens on
CROSS = {"is_decoder": True, "add_cross_attention": True}
BESIDE = {**CROSS, "self_attention_beside_encoder": True}


def _model(name=NAME, train=False, dtype=torch.float64, **options):
    model = getattr(ours, name)(config(name, **options)).to(dtype)
    randomize(model)
    return model.train(train)


def _ids(B, T):
    return torch.randint(4, 99, (B, T))


def _encoder(dtype=torch.float64, B=2, S=7):
    mask = torch.ones(B, S, dtype=torch.long)
    mask[-1, 4:] = 0
    return {"encoder_hidden_states": torch.randn(B, S, 32, dtype=dtype), "encoder_attention_mask": mask}


@torch.no_grad()
def _in_parts(model, ids, ends, cache=None, mask=None, **inputs):
    """Logits of `ids`, whose tokens go in up to `ends`, one end after the other."""
    logits, start = [], 0
    for end in ends:
        seen = None if mask is None else mask[:, :end]
        output = model(ids[:, start:end], attention_mask=seen, past_key_values=cache, use_cache=True, **inputs)
        cache, start = output.past_key_values, end
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


# ---- the tokens before -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "encoders_fast"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_full_attention_is_stock(attn_implementation, train):
    stock, model = (each.train(train) for each in pair(NAME, **FULL))
    model.config._attn_implementation = attn_implementation
    inputs = batch(NAME, model.config, labels=True)
    with torch.no_grad():
        outputs = [
            {key: value for key, value in each(**inputs).items() if key != "past_key_values"}
            for each in (model, stock, exact(stock))
        ]
    assert_outputs_as_good(*outputs)


ENDS = {
    "short prompt": (9, *range(10, 46)),  # full attention, then over blocks
    "long prompt": (37, 38, 39, 40, 41, 45),
    "parts that do not begin with a block": (30, 35, 43, 45),
    "parts from the first on": (3, 28, 29, 45),
    "token by token": tuple(range(1, 46)),
}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("plan", ["transformers", "original"])
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_cached_is_uncached(ends, plan, train):
    """Over blocks too, whatever the parts, and padded on the left."""
    model = _model(train=train, random_plan=plan, **SPARSE)
    ids = _ids(2, ends[-1])
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(_in_parts(model, ids, ends, mask=mask)[0], whole[0])
    if ends[0] > 1:
        torch.testing.assert_close(_in_parts(model, ids, ends, mask=mask)[1, 2:], whole[1, 2:])


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", [FULL, SPARSE], ids=["original_full", "block_sparse"])
def test_no_token_sees_what_follows(options, train):
    """Neither the tokens that follow nor how many they are; transformers' block_sparse shows both."""
    model = _model(train=train, **options)
    ids = _ids(1, 45)
    with torch.no_grad():
        whole = model(ids).logits
        for T in (1, 20, 28, 29, 31, 44):
            torch.testing.assert_close(model(ids[:, :T]).logits, whole[:, :T])
        other = ids.clone()
        other[:, 30:] = 5
        torch.testing.assert_close(model(other).logits[:, :30], whole[:, :30])
        assert relative_error(model(other).logits[:, 30:], whole[:, 30:]) > 0.01


def test_sparse_is_sparse():
    """Which tokens a decoder's token sees: all, as long as they are few, then three blocks."""
    model = _model("BigBirdModel", **SPARSE)
    with torch.no_grad():
        seen = model(_ids(1, 45), output_attentions=True).attentions[0][0, 0] > 0
    blocks = torch.arange(45) // 4
    i, j = blocks[:, None], blocks
    right = ((i < 7) | (j == 0) | (j >= i - 1)) & (torch.arange(45) <= torch.arange(45)[:, None])
    assert torch.equal(seen, right)


def test_leak_on_request():
    """With causal_block_sparse=False: transformers' numbers, but a short input changes nothing for good."""
    stock, model = pair(NAME, **SPARSE)
    model.config.causal_block_sparse = False
    inputs = batch(NAME, model.config, T=40)
    with torch.no_grad():
        output, plain, right = ({"logits": each(**inputs).logits} for each in (model, stock, exact(stock)))
        assert_outputs_as_good(output, plain, right)
        model(_ids(1, 3))
        assert torch.equal(model(**inputs).logits, output["logits"])
        other = {**inputs, "input_ids": inputs["input_ids"].clone()}
        other["input_ids"][:, -12:] = 5
        assert not torch.allclose(model(**other).logits[:, :5], output["logits"][:, :5], atol=1e-3)


# ---- caches ----------------------------------------------------------------------------------------------------------


def _tuples(output):
    return tuple((layer.keys, layer.values) for layer in output.past_key_values.layers)


@pytest.mark.parametrize("options", [FULL, SPARSE], ids=["original_full", "block_sparse"])
def test_kinds_of_cache(options):
    model = _model(**options)
    ids = _ids(2, 45)
    ends = (33, 34, 45)
    with torch.no_grad():
        whole = model(ids).logits
        output = model(ids[:, :33], use_cache=True)
        output = model(ids[:, 33:], past_key_values=_tuples(output), use_cache=True)
    torch.testing.assert_close(output.logits, whole[:, 33:])
    assert [[tuple(part.shape) for part in layer] for layer in output.past_key_values] == [[(2, 4, 45, 8)] * 2] * 2
    static = StaticCache(config=model.config, max_cache_len=50)
    for cache in (None, DynamicCache(), static):
        torch.testing.assert_close(_in_parts(model, ids, ends, cache), whole)


def test_use_cache():
    stock, model = pair(NAME, **FULL)
    inputs = batch(NAME, model.config, labels=True)
    for options in ({}, {"use_cache": False}, {"use_cache": True, "labels": None}):
        assert list(model(**{**inputs, **options})) == list(stock(**{**inputs, **options}))
    encoder = _model("BigBirdModel")
    assert encoder(_ids(1, 3), use_cache=True).past_key_values is None
    with pytest.raises(ValueError, match="past_key_values must be a Cache or hold 2 or 4 tensors"):
        model(_ids(1, 3), past_key_values=((torch.ones(1),),))


# ---- an encoder beside -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_cross_attention_is_stock(train, use_cache):
    """As long as self_attention_beside_encoder is False, with all that is odd about it."""
    stock, model = (each.train(train) for each in pair(NAME, **CROSS))
    inputs = {**batch(NAME, model.config), **_encoder(torch.float32), "use_cache": use_cache}
    wide = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"].double()}
    with torch.no_grad():
        outputs = [
            {
                "logits": output.logits,
                "attentions": output.attentions,
                "cross_attentions": output.cross_attentions,
            }
            for output in (
                model(**inputs, output_attentions=True),
                stock(**inputs, output_attentions=True),
                exact(stock)(**wide, output_attentions=True),
            )
        ]
    assert_outputs_as_good(*outputs)
    assert outputs[0]["cross_attentions"][0].shape == (2, 4, 12, 7)


@pytest.mark.filterwarnings("ignore:BigBirdForMaskedLM with config.is_decoder=True")
def test_cross_attention_of_a_masked_language_model_is_stock():
    stock, model = pair("BigBirdForMaskedLM", **CROSS)
    inputs = {**batch("BigBirdForMaskedLM", model.config), **_encoder(torch.float32)}
    wide = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"].double()}
    with torch.no_grad():
        assert_outputs_as_good(model(**inputs), stock(**inputs), exact(stock)(**wide))


@pytest.mark.parametrize("use_cache", [True, False])
def test_self_attention_beside_encoder(use_cache):
    """Both attentions do their work: tokens see those before them, and the encoder's that are not padding."""
    model = _model(**BESIDE)
    ids, encoder = _ids(2, 12), _encoder()
    with torch.no_grad():
        first = model(ids, use_cache=use_cache, **encoder).logits
        other = ids.clone()
        other[:, 6] = 5
        changed = (model(other, use_cache=use_cache, **encoder).logits - first).abs().amax((0, 2)) > 1e-6
        assert changed.tolist() == [False] * 6 + [True] * 6
        padded = {**encoder, "encoder_hidden_states": encoder["encoder_hidden_states"].clone()}
        padded["encoder_hidden_states"][1, 4:] = 9
        torch.testing.assert_close(model(ids, use_cache=use_cache, **padded).logits, first)
        padded["encoder_hidden_states"][1, 3] = 9
        assert not torch.allclose(model(ids, use_cache=use_cache, **padded).logits[1], first[1], atol=1e-3)


def test_cached_beside_encoder():
    model = _model(**BESIDE)
    ids, encoder = _ids(2, 12), _encoder()
    with torch.no_grad():
        whole = model(ids, use_cache=False, **encoder).logits
        output = model(ids[:, :5], use_cache=True, **encoder)
    assert isinstance(output.past_key_values, EncoderDecoderCache)
    torch.testing.assert_close(_in_parts(model, ids, (5, 6, 12), **encoder), whole)


def test_encoder_beside_sparse_attention():
    model = _model(attention_type="block_sparse", **{**CROSS, **{"block_size": 1, "num_random_blocks": 0}})
    assert model.bert.attention_type == "original_full"  # as transformers decides for such a decoder
    model(_ids(2, 12), **_encoder())
    model.bert.set_attention_type("block_sparse")
    with pytest.raises(ValueError, match='encoder_hidden_states need attention_type="original_full"'):
        model(_ids(2, 12), **_encoder())
    with pytest.raises(ValueError, match=r"for a decoder with config\.add_cross_attention=True; this has none"):
        _model(**FULL)(_ids(2, 12), **_encoder())
    with pytest.raises(ValueError, match=r"encoder_hidden_states \(2, 7, 31\) must be \[2, encoder tokens, 32\]"):
        model(_ids(2, 12), encoder_hidden_states=torch.randn(2, 7, 31))


# ---- generation ------------------------------------------------------------------------------------------------------

GENERATION = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 20},
}
PLAIN = {"max_new_tokens": 14, "min_new_tokens": 14, "pad_token_id": 3}


@pytest.mark.parametrize("options", [FULL, SPARSE, BESIDE], ids=["original_full", "block_sparse", "cross attention"])
@pytest.mark.parametrize("how", GENERATION.values(), ids=GENERATION)
def test_generation_with_and_without_a_cache(how, options):
    """block_sparse begins with full attention here, at 20 tokens, and is sparse when it ends."""
    model = _model(**options)
    ids = _ids(2, 20)
    encoder = _encoder() if "add_cross_attention" in options else {}
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        mask = torch.ones_like(ids)
        texts.append(model.generate(ids, attention_mask=mask, use_cache=use_cache, **PLAIN, **how, **encoder))
    assert texts[0].shape == (2, 34)
    assert torch.equal(*texts)


@pytest.mark.skipif(
    not hasattr(transformers.models.big_bird.modeling_big_bird, "create_causal_mask")
    and hasattr(transformers.models.big_bird.modeling_big_bird, "create_bidirectional_mask"),
    reason="this transformers' decoder is not causal",
)
@pytest.mark.parametrize("left", [0, 4])
def test_generation_is_stock(left):
    stock, model = pair(NAME, **FULL)
    ids = _ids(2, 10)
    mask = torch.ones_like(ids)
    mask[1, :left] = 0
    texts = [each.generate(ids, attention_mask=mask, do_sample=False, **PLAIN) for each in (stock, model)]
    assert torch.equal(*texts)
