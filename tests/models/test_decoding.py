"""Decoders: what is cached, generation, and cross attention."""

import pytest
import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import encoders_fast.models as ours
from tests.models.model_cases import batch, pair, randomize, tensors

FAMILIES = ("RobertaPreLayerNorm", "XLMRobertaXL")
DECODERS = [f"{family}ForCausalLM" for family in FAMILIES]
PAD = 1


def decoder(name, cross=False, **options):
    options = {"attn_implementation": "eager", "is_decoder": True, **options}
    return pair(name, add_cross_attention=cross, **options)


def prompts(B=2, T=7, padded=3):
    """Token ids and their mask; the second sequence begins with padding."""
    ids = torch.randint(3, 99, (B, T))
    mask = torch.ones_like(ids)
    mask[1:, :padded] = 0
    return ids.masked_fill(mask == 0, PAD), mask


def encoder_states(B=2, S=5, D=32):
    mask = torch.ones(B, S, dtype=torch.long)
    mask[1:, 3:] = 0
    return {"encoder_hidden_states": torch.randn(B, S, D), "encoder_attention_mask": mask}


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# ---- against transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("cross", [False, True], ids=["alone", "cross"])
@pytest.mark.parametrize("name", DECODERS)
def test_steps_are_transformers_steps(name, cross, implementation):
    """A prompt padded on the left, one token after it, and two more: outputs and caches."""
    stock, model = decoder(name, cross, attn_implementation=implementation)
    ids, mask = prompts(T=10)
    extra = encoder_states() if cross else {}
    caches = [None, None]
    for start, end in ((0, 7), (7, 8), (8, 10)):
        outputs = []
        for i, each in enumerate((stock, model)):
            with torch.no_grad():
                output = each(
                    ids[:, start:end],
                    attention_mask=mask[:, :end],
                    past_key_values=caches[i],
                    use_cache=True,
                    **extra,
                )
            caches[i] = output.past_key_values
            outputs.append(output)
        assert_close(outputs[1].logits[:, -1], outputs[0].logits[:, -1])
        assert type(caches[0]) is type(caches[1])
    for theirs, mine in zip(_layers(caches[0]), _layers(caches[1]), strict=True):
        seen = mask[:, None, :, None].bool() if mine.keys.shape[2] == 10 else torch.tensor(True)
        assert_close(mine.keys * seen, theirs.keys * seen)
        assert_close(mine.values * seen, theirs.values * seen)


def _layers(cache):
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return cache.layers


@pytest.mark.parametrize("cross", [False, True], ids=["alone", "cross"])
@pytest.mark.parametrize("name", DECODERS)
def test_outputs_of_a_decoder(name, cross):
    stock, model = decoder(name, cross)
    ids, mask = prompts()
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    inputs |= {"output_attentions": True, "output_hidden_states": True}
    inputs |= encoder_states() if cross else {}
    with torch.no_grad():
        theirs, mine = stock(**inputs), model(**inputs)
    # Without cross attention later versions of transformers answer with an empty tuple of them.
    expected = [key for key, value in theirs.items() if value != ()]
    assert list(mine) == expected
    assert "past_key_values" not in mine  # labels switch it off
    shown = dict(tensors({key: theirs[key] for key in expected}))
    for key, value in tensors(mine):
        rows = mask.bool() if value.dim() == 3 else ...
        assert_close(value[rows], shown[key][rows])


@pytest.mark.parametrize("name", DECODERS)
def test_use_cache(name):
    _, model = decoder(name)
    ids, _ = prompts()
    assert isinstance(model(ids).past_key_values, DynamicCache)
    assert model(ids, use_cache=False).past_key_values is None
    assert len(model(ids, return_dict=False)) == 2
    model.config.use_cache = False
    assert model(ids).past_key_values is None
    encoder = pair(name.replace("ForCausalLM", "Model"))[1]
    assert encoder(ids, use_cache=True).past_key_values is None
    assert isinstance(decoder(name, cross=True)[1](ids, **encoder_states()).past_key_values, EncoderDecoderCache)


@pytest.mark.parametrize("items", [None, 5])
@pytest.mark.parametrize("name", DECODERS)
def test_causal_loss(name, items):
    stock, model = decoder(name)
    ids, mask = (each.flip(1) for each in prompts())  # padded on the right: all rows mean something
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    if items is not None:
        inputs["num_items_in_batch"] = torch.tensor(items)
    theirs, mine = stock(**inputs), model(**inputs)
    assert_close(mine.loss, theirs.loss)
    theirs.loss.backward()
    mine.loss.backward()
    assert_close(model.get_input_embeddings().weight.grad, stock.get_input_embeddings().weight.grad)


# ---- with and without a cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "encoders_fast"])
@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_cache_changes_nothing(name, kind, implementation):
    _, model = decoder(name, position_embedding_type=kind) if kind == "absolute" else (None, relative(name, kind))
    model.set_attn_implementation(implementation)
    ids = torch.randint(3, 99, (2, 9))
    caches = [DynamicCache(), StaticCache(config=model.config, max_cache_len=12), None]
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for cache in caches:
            parts = []
            for start, end in ((0, 4), (4, 5), (5, 9)):
                output = model(
                    ids[:, start:end],
                    past_key_values=cache,
                    use_cache=True,
                    cache_position=torch.arange(start, end),
                )
                cache = output.past_key_values
                parts.append(output.logits)
            assert_close(torch.cat(parts, dim=1), whole)


def relative(name, kind, **options):
    family = name.split("For")[0]
    small = pair(name)[1].config.to_dict() | {"position_embedding_type": kind, "is_decoder": True, **options}
    model = getattr(ours, name)(getattr(ours, f"{family}Config")(**small)).eval()
    randomize(model)
    return model


@pytest.mark.parametrize("cross", [False, True], ids=["2 tensors", "4 tensors"])
@pytest.mark.parametrize("name", DECODERS)
def test_tuples(name, cross):
    """To whom gives tuples, tuples are returned; and they are as good as a cache."""
    _, model = decoder(name, cross)
    ids, mask = prompts(T=9)
    extra = encoder_states() if cross else {}
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, use_cache=False, **extra).logits
        cache = model(ids[:, :6], attention_mask=mask[:, :6], **extra).past_key_values
        own = cache.self_attention_cache if cross else cache
        past = tuple((layer.keys, layer.values) for layer in own.layers)
        if cross:
            past = tuple(
                (*two, layer.keys, layer.values)
                for two, layer in zip(past, cache.cross_attention_cache.layers, strict=True)
            )
            # The encoder's keys are in the tuples: what is given now has no effect.
            extra["encoder_hidden_states"] = -extra["encoder_hidden_states"]
        positions = mask.cumsum(1)[:, 6:] + PAD
        output = model(ids[:, 6:], attention_mask=mask, past_key_values=past, position_ids=positions, **extra)
    assert isinstance(output.past_key_values, tuple)
    assert {len(layer) for layer in output.past_key_values} == {4 if cross else 2}
    assert output.past_key_values[0][0].shape[2] == 9
    assert past[0][0].shape[2] == 6
    assert_close(output.logits, whole[:, 6:])


def test_a_cache_without_room_for_the_encoder():
    """transformers raises an AttributeError."""
    _, model = decoder(DECODERS[0], cross=True)
    ids = torch.randint(3, 99, (2, 6))
    extra = encoder_states()
    with torch.no_grad():
        cache = DynamicCache()
        model(ids[:, :4], past_key_values=cache, **extra)
        assert_close(model(ids[:, 4:], past_key_values=cache, **extra).logits, model(ids, **extra).logits[:, 4:])


@pytest.mark.parametrize(
    ("past", "error", "message"),
    [
        (((torch.zeros(2, 4, 3, 8),) * 3,) * 2, ValueError, r"2 or 4 tensors for each of the 2 layers.*\[3, 3\]"),
        (((torch.zeros(2, 4, 3, 8),) * 2,), ValueError, r"for each of the 2 layers; they hold \[2\]"),
        (torch.zeros(3), TypeError, "must be a Cache or tuples; they are Tensor"),
    ],
)
def test_what_is_no_cache(past, error, message):
    _, model = decoder(DECODERS[0])
    with pytest.raises(error, match=message):
        model(torch.randint(3, 99, (2, 3)), past_key_values=past)


def test_mask_of_the_wrong_length():
    _, model = decoder(DECODERS[0])
    ids = torch.randint(3, 99, (2, 6))
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask \(2, 6\) must be \(2, 12\)"):
        model(ids, past_key_values=cache, attention_mask=torch.ones(2, 6))


# ---- generation -----------------------------------------------------------------------------------------------------

WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 5},
    "beams": {"num_beams": 3, "do_sample": False},
}


def generated(model, cross, **options):
    ids, mask = prompts()
    extra = encoder_states() if cross else {}
    torch.manual_seed(3)
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=8, pad_token_id=PAD, eos_token_id=2, **extra, **options
    )


@pytest.mark.parametrize("cross", [False, True], ids=["alone", "cross"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DECODERS)
def test_generate(name, way, cross):
    """The tokens that transformers generates, where it can; with and without a cache."""
    stock, model = decoder(name, cross)
    torch.manual_seed(7)
    cached = generated(model, cross, **WAYS[way])
    torch.manual_seed(7)
    assert torch.equal(cached, generated(model, cross, use_cache=False, **WAYS[way]))
    assert cached.shape[1] > 7
    torch.manual_seed(7)
    # With a cache transformers' cross attention fails in `generate`.
    assert torch.equal(cached, generated(stock, cross, use_cache=not cross, **WAYS[way]))


@pytest.mark.parametrize("implementation", ["sdpa", "encoders_fast"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS)
def test_generate_with_every_cache(name, cache, implementation):
    _, model = decoder(name)
    torch.manual_seed(7)
    expected = generated(model, False, do_sample=False)
    model.set_attn_implementation(implementation)
    torch.manual_seed(7)
    assert torch.equal(generated(model, False, do_sample=False, cache_implementation=cache), expected)


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left-padded"])
@pytest.mark.parametrize("name", DECODERS)
def test_exact_positions(name, padded):
    """With the option, generation's logits are those of the whole sequence encoded at once; by default they are not."""
    for exact in (True, False):
        _, model = decoder(name) if not exact else (None, None)
        if model is None:
            model = getattr(ours, name)(pair(name)[1].config)
        model.config.is_decoder, model.config.exact_positions = True, exact
        fresh = getattr(ours, name)(model.config).eval()
        randomize(fresh)
        ids, mask = prompts(padded=3 if padded else 0)
        output = fresh.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=PAD,
            eos_token_id=None,
            suppress_tokens=[PAD],  # its position would be that of padding
            output_logits=True,
            return_dict_in_generate=True,
        )
        with torch.no_grad():
            for row in range(2):
                alone = output.sequences[row, mask[row].argmax() :][None]
                whole = fresh(alone, use_cache=False).logits[0, -5:-1]
                steps = torch.stack([logits[row] for logits in output.logits])
                assert torch.allclose(steps, whole, rtol=1e-3, atol=1e-3) == exact


@pytest.mark.parametrize("name", DECODERS)
def test_exact_positions_of_cached_steps(name):
    """Padding on the left, and embeddings in place of ids."""
    _, model = decoder(name)
    model.config.exact_positions = True
    ids, mask = prompts(T=8)
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        whole = model(ids[1:, 3:], use_cache=False).logits[0]
        for steps in ({"input_ids": ids}, {"inputs_embeds": embeds}):
            ((key, value),) = steps.items()
            first = model(**{key: value[:, :6]}, attention_mask=mask[:, :6])
            last = model(**{key: value[:, 6:]}, attention_mask=mask, past_key_values=first.past_key_values)
            assert_close(last.logits[1], whole[-2:])


@pytest.mark.parametrize("name", DECODERS)
def test_too_many_tokens(name):
    """64 positions less the two that padding takes are 62 tokens."""
    _, model = decoder(name)
    ids = torch.randint(3, 99, (2, 62))
    cache = model(ids).past_key_values
    with pytest.raises(
        ValueError, match=r"the last position is 64, the model has positions 0 to 63: room for 62 tokens"
    ):
        model(ids[:, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="room for 62 tokens"):
        model(torch.randint(3, 99, (2, 63)))


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4]), torch.tensor([[0, 4], [1, 2]])], ids=str)
def test_logits_to_keep(keep):
    _, model = decoder(DECODERS[0])
    ids = torch.randint(3, 99, (2, 6))
    whole, kept = model(ids).logits, model(ids, logits_to_keep=keep).logits
    if isinstance(keep, int):
        expected = whole[:, -keep:]
    else:
        expected = torch.stack([whole[b, rows] for b, rows in enumerate(keep.expand(2, -1))])
    assert_close(kept, expected)
    with pytest.raises(ValueError, match="logits_to_keep must be 0"):
        model(ids, labels=ids, logits_to_keep=keep)


def test_encoder_states_without_cross_attention():
    _, model = decoder(DECODERS[0])
    with pytest.raises(ValueError, match="add_cross_attention=True"):
        model(torch.randint(3, 99, (2, 6)), **encoder_states())
    _, model = decoder(DECODERS[0], cross=True)
    with pytest.raises(ValueError, match=r"encoder_hidden_states \(3, 5, 32\) must be \[2, encoder tokens, 32\]"):
        model(torch.randint(3, 99, (2, 6)), **encoder_states(B=3))
    with pytest.raises(ValueError, match="is_decoder must be True too"):
        ours.XLMRobertaXLModel(ours.XLMRobertaXLConfig(**model.config.to_dict() | {"is_decoder": False}))


def test_bidirectional_by_mistake(monkeypatch):
    from encoders_fast.models import inputs

    monkeypatch.setattr(inputs, "_warned", set())
    with pytest.warns(UserWarning, match="is_decoder=False: every token sees those behind it"):
        ours.RobertaPreLayerNormForCausalLM(pair("RobertaPreLayerNormModel")[1].config)
    with pytest.warns(UserWarning, match="is_decoder=True: no token sees those behind it"):
        ours.XLMRobertaXLForMaskedLM(decoder("XLMRobertaXLForCausalLM")[1].config)


def test_transformers_loads_what_was_trained_with_a_cache(tmp_path):
    _, model = decoder(DECODERS[1], cross=True)
    model.save_pretrained(tmp_path)
    loaded = transformers.XLMRobertaXLForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(3, 99, (2, 6))
    extra = encoder_states()
    assert_close(loaded(ids, **extra).logits, model(ids, **extra).logits)


@pytest.mark.parametrize("implementation", ["sdpa", "encoders_fast"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_compiled_steps(kind, implementation):
    """In one graph, where a cache of fixed size counts its tokens in a tensor, and goes on counting in it."""
    torch._dynamo.reset()
    _, model = decoder(DECODERS[0], attn_implementation=implementation)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids = torch.randint(3, 99, (2, 8))
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=12)
    parts = []
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for start, end in ((0, 5), (5, 6), (6, 8)):
            position = torch.arange(start, end)
            output = compiled(ids[:, start:end], past_key_values=cache, use_cache=True, cache_position=position)
            parts.append(output.logits)
    assert_close(torch.cat(parts, dim=1), whole)
    torch._dynamo.reset()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [f"{family}ForSequenceClassification" for family in FAMILIES])
def test_export(name, implementation):
    """One program for every batch and length."""
    _, model = pair(name, attn_implementation=implementation)
    inputs = batch(name, model.config)
    B, T = torch.export.Dim("B", min=1, max=64), torch.export.Dim("T", min=2, max=60)
    program = torch.export.export(model, (), inputs, dynamic_shapes={key: {0: B, 1: T} for key in inputs})
    for shape in ((2, 12), (3, 7), (1, 60)):
        inputs = batch(name, model.config, B=shape[0], T=shape[1])
        assert_close(program.module()(**inputs).logits, model(**inputs).logits)
