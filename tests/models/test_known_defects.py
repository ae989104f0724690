"""What transformers' models get wrong and ours must not, where no other test shows it. The other end, whether
transformers still does, is in test_known_defects_of_transformers.py."""

import random

import numpy as np
import pytest
import torch
import transformers
from torch.nn.parallel import DistributedDataParallel

import encoders_fast.models as ours
from tests.closeness import relative_error
from tests.models.model_cases import HEADS, MODELS, batch, config, randomize

BACKBONES = [name for name in MODELS if name.endswith("Model")]
ATTENDING = [name for name in BACKBONES if not name.startswith("FNet")]
DECODERS = [name for name in MODELS if name.endswith("CausalLM")]
SPARSE = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}
EPS = torch.finfo(torch.float32).eps

# transformers renamed it between 5.17 and 5.23; the old name warns.
renamed = hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
CHECKPOINTING = "activation_checkpointing" if renamed else "gradient_checkpointing"


def build(name, **options):
    model = getattr(ours, name)(config(name, **options))
    randomize(model)
    return model.eval()


def assert_same(actual, expected):
    """Up to what a few layers make of another order of summation."""
    assert relative_error(actual, expected) < 64 * EPS


# ---- models without memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True], ids=["to_empty", "assign"])
@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith(("Model", "MaskedLM"))])
def test_built_without_memory_and_loaded(name, assign):
    """All that a model is stands in its state dict: no buffer is left with what was in memory before."""
    model = build(name)
    with torch.device("meta"):
        twin = getattr(ours, name)(config(name)).eval()
    if not assign:
        twin.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*twin.parameters(), *twin.buffers()):
                tensor.fill_(77)
    twin.load_state_dict(model.state_dict(), assign=assign)
    inputs = batch(name, model.config)
    inputs.pop("token_type_ids")
    with torch.no_grad():
        for value, expected in zip(twin(**inputs).to_tuple(), model(**inputs).to_tuple(), strict=True):
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, expected)


# ---- DistributedDataParallel ----------------------------------------------------------------------------------------

UNUSED = [
    ("BigBirdForQuestionAnswering", {}),
    ("MobileBertForSequenceClassification", {"use_bottleneck_attention": True}),
    ("MobileBertForSequenceClassification", {"trigram_input": False, "embedding_size": 32}),
    ("MobileBertForSequenceClassification", {"trigram_input": False}),
    ("RobertaPreLayerNormForMaskedLM", {"position_embedding_type": "relative_key"}),
    ("XLMRobertaXLForMaskedLM", {"position_embedding_type": "relative_key_query"}),
]


@pytest.fixture(scope="module")
def one_process():
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in HEADS] + UNUSED, ids=str)
def test_distributed_training(name, options, one_process):
    """DistributedDataParallel raises in the second step where a parameter that it waits for had no gradient."""
    arguments = {"add_pooling_layer": True} if (name, options) in UNUSED and "Question" in name else {}
    model = getattr(ours, name)(config(name, **options), **arguments)
    randomize(model)
    unused = model._ddp_params_and_buffers_to_ignore
    parallel = DistributedDataParallel(model.train())
    inputs = batch(name, model.config, labels=True)
    for _ in range(2):
        parallel(**inputs).loss.backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (key in unused), key
    assert set(unused) <= set(model.state_dict())


@pytest.mark.parametrize("name", ["BigBirdModel", "FNetModel"])
def test_pooler_of_a_backbone_alone_is_used(name):
    assert build(name)._ddp_params_and_buffers_to_ignore == []


def test_unused_parameters_after_loading(tmp_path):
    """from_pretrained makes parameters of its own."""
    model = build("FNetForMaskedLM")
    model.save_pretrained(tmp_path)
    loaded = ours.FNetForMaskedLM.from_pretrained(tmp_path)
    names = ["fnet.pooler.dense.weight", "fnet.pooler.dense.bias"]
    assert loaded._ddp_params_and_buffers_to_ignore == names
    assert all(torch.equal(loaded.get_parameter(name), model.get_parameter(name)) for name in names)


# ---- padding --------------------------------------------------------------------------------------------------------

LENGTHS = [7, 12, 1, 7, 4]


def padded_rows(side, padding, T=12):
    """Ids of rows of different lengths, and the mask that says where they are."""
    ids = torch.randint(4, 99, (len(LENGTHS), T))
    places = torch.arange(T)
    lengths = torch.tensor(LENGTHS)[:, None]
    if side == "right":
        real = places < lengths
    elif side == "left":
        real = places >= T - lengths
    else:  # on both sides
        real = (places >= (T - lengths) // 2) & (places < (T - lengths) // 2 + lengths)
    return ids.masked_fill(~real, padding), real.long()


EXACT = [("FNetModel", {}), ("MobileBertModel", {}), ("MobileBertModel", {"attn_implementation": "eager"})]
EXACT += [("MobileBertModel", {"attn_implementation": "encoders_fast"}), ("MobileBertModel", {"use_bottleneck": False})]
EXACT += [(name, {**options, "keep_padding": False}) for name, options in EXACT if name != "FNetModel"]


@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize(("name", "options"), EXACT, ids=str)
def test_exact_padding(name, options, side):
    """Every row is what it is alone, the pooled state too; from ids and from embeddings, with every gradient."""
    # The ReLUs of the default let a gradient jump by rounding.
    model = build(name, exact_padding=True, hidden_act="gelu", **options)
    ids, mask = padded_rows(side, model.config.pad_token_id)
    embeds = model.get_input_embeddings().weight.detach()[ids].requires_grad_()
    output = model(inputs_embeds=embeds, attention_mask=mask)
    assert output.last_hidden_state.isfinite().all()
    weights = torch.randn(output.last_hidden_state.shape)
    (output.last_hidden_state * weights * mask[..., None]).sum().backward()
    assert not embeds.grad[mask == 0].any()
    left_out = side == "right" and not options.get("keep_padding", True)
    assert output.last_hidden_state[mask == 0].any() != left_out
    assert torch.equal(model(ids, attention_mask=mask).last_hidden_state, output.last_hidden_state)
    with torch.no_grad():  # other kernels may do it, with another order of summation
        assert_same(model(ids, attention_mask=mask).last_hidden_state, output.last_hidden_state)
    for row, real in enumerate(mask.bool()):
        alone = embeds.detach()[row, real][None].requires_grad_()
        expected = model(inputs_embeds=alone)
        assert_same(output.last_hidden_state[row, real], expected.last_hidden_state[0])
        assert_same(output.pooler_output[row], expected.pooler_output[0])
        (expected.last_hidden_state * weights[row, real]).sum().backward()
        assert relative_error(embeds.grad[row, real], alone.grad[0]) < 1024 * EPS


@pytest.mark.parametrize("name", ["FNetModel", "MobileBertModel"])
def test_padding_takes_part_by_default(name, monkeypatch):
    from encoders_fast.models import inputs

    monkeypatch.setattr(inputs, "_warned", {f for f in inputs._warned if "FNet" in f})
    model = build(name)
    ids, mask = padded_rows("right", model.config.pad_token_id)
    given = {} if name == "FNetModel" else {"attention_mask": mask}
    with torch.no_grad():
        padded, alone = model(ids, **given).last_hidden_state[0, :7], model(ids[:1, :7]).last_hidden_state[0]
    assert relative_error(padded, alone) > 0.01


@pytest.mark.parametrize("mask", [torch.ones(5, 12), torch.ones(1, 12), torch.ones(5, 12, dtype=torch.bool)], ids=str)
@pytest.mark.parametrize("name", ["FNetModel", "MobileBertModel"])
def test_exact_padding_without_padding(name, mask):
    exact, model = build(name, exact_padding=True), build(name)
    ids = torch.randint(4, 99, (5, 12))
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        assert_same(exact(ids, attention_mask=mask).last_hidden_state, expected)
        assert_same(exact(ids).last_hidden_state, expected)


@pytest.mark.parametrize("name", ["FNetModel", "MobileBertModel"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 12), (2, 12, 12)], ids=str)
def test_exact_padding_needs_to_know_the_padding(name, shape):
    model = build(name, exact_padding=True)
    with pytest.raises(ValueError, match=r"attention_mask must be \(2, 12\), one number per token"):
        model(torch.full((2, 12), 5), attention_mask=torch.ones(shape))


@pytest.mark.parametrize("name", ["FNetModel", "MobileBertModel"])
def test_exact_padding_and_own_positions(name):
    """Positions that are given are taken, as they are; a row of nothing but padding is finite."""
    model = build(name, exact_padding=True)
    ids, mask = padded_rows("left", model.config.pad_token_id)
    mask[2] = 0
    positions = torch.arange(20, 32).expand(5, 12)
    with torch.no_grad():
        output = model(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        assert output.isfinite().all()
        alone = model(ids[:1, 5:], position_ids=positions[:1, 5:]).last_hidden_state
        assert_same(output[0, 5:], alone[0])
        assert model(ids[:2], attention_mask=torch.zeros(2, 12)).last_hidden_state.isfinite().all()


def test_exact_padding_of_fnet_in_half_precision_and_checkpointed():
    model = build("FNetForSequenceClassification", exact_padding=True)
    ids, mask = padded_rows("left", model.config.pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0, 1])}
    expected = model(**inputs)
    expected.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    getattr(model, f"{CHECKPOINTING}_enable")()
    model.zero_grad()
    model.train()(**inputs).loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(model(**inputs).logits, expected.logits) < 16 * torch.finfo(torch.bfloat16).eps
    assert relative_error(model.bfloat16()(**inputs).logits, expected.logits) < 16 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("shape", [(5, 11), (4, 12), (5, 12, 12), (5, 1, 12, 12), (12,)], ids=str)
def test_wrong_mask_of_fnet(shape):
    with pytest.raises(ValueError, match=r"attention_mask.*\(5, 12\)|attention_mask must be \[batch"):
        build("FNetModel", exact_padding=True)(torch.randint(4, 99, (5, 12)), attention_mask=torch.zeros(shape))


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in ATTENDING), ("BigBirdModel", SPARSE)], ids=str)
def test_padding_gets_no_gradient(name, options):
    model = build(name, **options, **({"exact_padding": True} if name == "MobileBertModel" else {}))
    ids, mask = padded_rows("right", model.config.pad_token_id, T=18)
    embeds = model.get_input_embeddings().weight.detach()[ids].requires_grad_()
    h = model.train()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    (h * torch.randn_like(h) * mask[..., None]).sum().backward()
    assert not embeds.grad[mask == 0].any()
    assert embeds.grad[mask == 1].any(-1).all()


def test_exact_padding_of_mobilebert_compiled_and_exported():
    torch._dynamo.reset()
    model = build("MobileBertModel", exact_padding=True)
    ids, mask = padded_rows("left", model.config.pad_token_id)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    sizes = {0: torch.export.Dim("B", min=1, max=64), 1: torch.export.Dim("T", min=2, max=60)}
    inputs = {"input_ids": ids, "attention_mask": mask}
    program = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, sizes)).module()
    with torch.no_grad():
        for each, B, T in ((compiled, 5, 12), (program, 5, 12), (program, 2, 9)):
            part = {key: value[:B, -T:] for key, value in inputs.items()}
            for name in ("last_hidden_state", "pooler_output"):
                assert_same(each(**part)[name], model(**part)[name])
    torch._dynamo.reset()


# ---- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [name for name in DECODERS if not name.startswith("BigBird")])
def test_exact_positions_of_generation_from_embeddings(name, cache):
    """Padded on the left, with the logits of the whole sequence encoded at once."""
    model = build(name, exact_positions=True)
    ids, mask = padded_rows("left", 1)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    options |= {"suppress_tokens": [1], "output_logits": True, "return_dict_in_generate": True}
    embeds = model.get_input_embeddings()(ids)
    output = model.generate(inputs_embeds=embeds, attention_mask=mask, cache_implementation=cache, **options)
    steps = torch.stack(output.logits, dim=1)
    for row, real in enumerate(mask.bool()):
        whole = torch.cat([ids[row, real], output.sequences[row, -4:]])[None]
        with torch.no_grad():
            assert_same(steps[row], model(whole, use_cache=False).logits[0, -5:-1])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["RobertaPreLayerNormModel", "XLMRobertaXLModel"])
def test_positions_of_padded_embeddings(name, exact):
    """In embeddings padding cannot be seen; the mask shows it."""
    model = build(name, exact_positions=exact)
    ids, mask = padded_rows("left", 1)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state[mask == 1]
        embeds = model.get_input_embeddings()(ids)
        actual = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[mask == 1]
    assert (relative_error(actual, expected) < 64 * EPS) == exact


# ---- random numbers, half precision, dropout ------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in BACKBONES), ("BigBirdModel", SPARSE)], ids=str)
def test_no_generator_is_touched(name, options, train):
    """Where nothing is dropped, random blocks or not, a forward pass draws from nobody's generator."""
    model = build(name, **options).train(train)
    inputs = batch(name, model.config, T=30)
    inputs = {key: value for key, value in inputs.items() if key != "attention_mask"}
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    model(**inputs).last_hidden_state.sum().backward()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "encoders_fast"])
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in (*ATTENDING, *DECODERS)), ("BigBirdModel", SPARSE), ("BigBirdForCausalLM", SPARSE)],
    ids=str,
)
def test_float16_is_finite(name, options, implementation):
    """There and back, with a row that sees nothing and one that begins with padding."""
    model = build(name, attn_implementation=implementation, **options).half().train()
    inputs = batch(name, model.config, labels=name in HEADS, B=3, T=18)
    inputs["attention_mask"] = torch.ones(3, 18, dtype=torch.long)
    inputs["attention_mask"][1] = 0
    inputs["attention_mask"][2, :5] = 0
    output = model(**inputs)
    loss = output.loss if name in HEADS else output.last_hidden_state.float().square().mean()
    loss.backward()
    assert output[1 if name in HEADS else 0].isfinite().all()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("hooked", [False, True])
def test_dropout_behind_the_feed_forward_block(hooked):
    """The published XLM-RoBERTa-XL was trained with it; the option has the rate and the scale."""
    from encoders_fast.models.xlm_roberta_xl import XLMRobertaXLLayer

    rates = {}
    for drops in (False, True):
        model = build("XLMRobertaXLModel", hidden_dropout_prob=0.25, feed_forward_dropout=drops).train()
        layer: XLMRobertaXLLayer = model.encoder.layer[0]
        with torch.no_grad():  # attention adds nothing, the block adds ones
            for parameter in (*layer.attention.output.parameters(), layer.output.dense.weight):
                parameter.zero_()
            layer.output.dense.bias.fill_(1)
        seen = []
        if hooked:
            layer.output.register_forward_hook(lambda *args: None)
        model.embeddings.register_forward_hook(lambda module, args, h, seen=seen: seen.append(h))
        h = model(torch.randint(4, 99, (8, 50)), output_hidden_states=True).hidden_states
        added = h[1] - seen[0]
        zeros = added.abs() < 1e-3
        rates[drops] = zeros.float().mean().item()
        torch.testing.assert_close(added[~zeros], torch.full_like(added[~zeros], 4 / 3 if drops else 1.0))
    assert rates[False] == 0
    assert abs(rates[True] - 0.25) < 5 * (0.25 * 0.75 / (8 * 50 * 32)) ** 0.5


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_configured_tuples(name):
    """config.return_dict is a wish for the head's output, not for what it asks of its backbone."""
    model = build(name)
    inputs = batch(name, model.config, labels=True)
    expected = model(**inputs).to_tuple()
    model.config.return_dict = False
    output = model(**inputs)
    assert type(output) is tuple
    assert len(output) == len(expected)
    assert torch.equal(output[1], expected[1])


@pytest.mark.parametrize("name", HEADS)
def test_int32_labels(name):
    model = build(name)
    inputs = batch(name, model.config, labels=True)
    labels = {key: value.int() for key, value in inputs.items() if "label" in key or "positions" in key}
    assert labels
    assert torch.equal(model(**inputs | labels).loss, model(**inputs).loss)


def test_chunks_of_big_bird_need_not_divide_the_length():
    with torch.no_grad():
        for options in ({}, SPARSE):
            whole, chunked = (
                build("BigBirdModel", **options),
                build("BigBirdModel", chunk_size_feed_forward=5, **options),
            )
            inputs = batch("BigBirdModel", whole.config, T=23)
            assert_same(chunked(**inputs).last_hidden_state, whole(**inputs).last_hidden_state)


@pytest.mark.parametrize("plan", ["transformers", "original", "anywhere"])
def test_rows_of_attentions(plan):
    """In evaluation transformers lists the first block several times and shows one copy's part; the other plans list
    none twice, so that a query's attention sums to one."""
    model = build("BigBirdModel", **SPARSE, random_plan=plan)
    with torch.no_grad():
        output = model(torch.randint(4, 99, (2, 30)), output_attentions=True)
    sums = torch.stack(output.attentions).sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=64 * EPS) == (plan != "transformers")


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("FNet", {"exact_padding": True}),
        ("MobileBert", {"exact_padding": True}),
        ("XLMRobertaXL", {"feed_forward_dropout": True}),
    ],
)
def test_options_are_saved_where_they_are_set(family, options, tmp_path):
    kind = getattr(ours, f"{family}Config")
    assert not set(options) & set(kind().to_dict())
    kind(**options).save_pretrained(tmp_path)
    (name,) = options
    assert getattr(kind.from_pretrained(tmp_path), name) is True
    assert getattr(transformers, f"{family}Config").from_pretrained(tmp_path).hidden_size > 0
