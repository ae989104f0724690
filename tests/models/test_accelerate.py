"""`accelerate`: transformers' models with this library's code inside give the same numbers and stay the same models."""

import pytest
import torch
import transformers
from torch import nn

import encoders_fast
import encoders_fast.models as ours
from encoders_fast import _dispatch, accelerate, explain, restore, verify
from encoders_fast.models import attention
from encoders_fast.models.live import pre_layer_norm
from tests.closeness import assert_as_good_as, relative_error
from tests.models.live_cases import BACKBONES, CASES, SPARSE, inputs_of, live, ops_of, ops_run_by, title
from tests.models.model_cases import assert_outputs_as_good, config, exact

BERT = transformers.BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2)

each_model = pytest.mark.parametrize(("name", "options"), CASES, ids=title)
each_backbone = pytest.mark.parametrize(("name", "options"), BACKBONES, ids=title)


def traits(model):
    """Everything about a model's modules but their classes."""
    return {
        path: (id(module), module.training, {key: id(value) for key, value in vars(module).items()})
        for path, module in model.named_modules()
    }


@each_model
def test_outputs(name, options):
    plain, model = live(name, **options), accelerate(live(name, **options), strict=True)
    inputs = inputs_of(name, plain, labels="For" in name)
    with torch.no_grad():
        assert ops_run_by(model, **inputs) == ops_of(name, options)
        assert_outputs_as_good(model(**inputs), plain(**inputs), exact(plain)(**inputs))


@each_model
def test_only_classes_inside_change(name, options):
    model = live(name, **options)
    before, kinds = traits(model), {path: type(module) for path, module in model.named_modules()}
    assert accelerate(model) is model
    assert traits(model) == before
    assert type(model) is getattr(transformers, name)
    assert type(model.base_model) is kinds["" if model.base_model is model else model.base_model_prefix]
    for path, module in model.named_modules():
        assert isinstance(module, kinds[path])
        assert type(module).__name__ == kinds[path].__name__
    assert any(type(module) is not kinds[path] for path, module in model.named_modules())


@each_model
def test_restore(name, options):
    model = live(name, **options)
    inputs = inputs_of(name, model)
    with torch.no_grad():
        expected = model(**inputs)[0]
        before, kinds = traits(model), [type(module) for module in model.modules()]
        accelerate(model)(**inputs)
        assert restore(model) is model
        assert [type(module) for module in model.modules()] == kinds
        assert torch.equal(model(**inputs)[0], expected)
        assert traits(model) == before
        assert not ops_run_by(model, **inputs)
        accelerate(accelerate(model))
        assert ops_run_by(model, **inputs) == ops_of(name, options)


@pytest.mark.parametrize(
    ("name", "options"),
    BACKBONES
    + [(name, {"attn_implementation": "sdpa"}) for name, _ in BACKBONES if name not in ("BigBirdModel", "FNetModel")],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_gradients_with_padding(name, options):
    plain, fast = live(name, **options).train(), accelerate(live(name, **options), strict=True).train()
    wide = exact(plain)
    inputs = inputs_of(name, plain)
    assert name == "FNetModel" or (inputs["attention_mask"] == 0).any()
    weights = torch.randn(2, inputs["input_ids"].shape[1], plain.config.hidden_size)
    for model in (plain, fast, wide):
        (model(**inputs).last_hidden_state * weights).sum().backward()
    right = dict(wide.named_parameters())
    compared = 0
    for (path, parameter), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert parameter.grad is None, path
        elif right[path].grad.norm() > 1e-9 * weights.norm():  # a key's bias has none: what is left is rounding
            assert_as_good_as(parameter.grad, theirs.grad, right[path].grad, 3.0)
            compared += 1
    assert compared > 20


# Over blocks, transformers drops no attention probabilities.
DROPS = [(name, options, "hidden_dropout_prob") for name, options in BACKBONES]
DROPS += [(n, o, "attention_probs_dropout_prob") for n, o in BACKBONES if n != "FNetModel" and o != SPARSE]


@pytest.mark.parametrize(("name", "options", "option"), DROPS, ids=title)
def test_dropout(name, options, option):
    plain, model = live(name, **options, **{option: 0.2}).train(), live(name, **options, **{option: 0.2}).train()
    accelerate(model, strict=True)
    inputs = inputs_of(name, plain)
    for each in (plain, model):
        each.embeddings.dropout.p = 0.0
    with torch.no_grad():
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(model(**inputs).last_hidden_state)
        torch.testing.assert_close(states[0], states[1])
        assert not torch.equal(states[0], states[2])
        means = [torch.stack([each(**inputs).last_hidden_state for _ in range(200)]) for each in (model, plain)]
    spreads = [states.std(0) for states in means]
    assert 0.8 < (spreads[0].norm() / spreads[1].norm()) < 1.25
    assert ((means[0].mean(0) - means[1].mean(0)).abs() / (spreads[1] / 200**0.5).clamp_min(1e-3)).mean() < 2


@each_backbone
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtypes(name, options, dtype):
    plain = live(name, **options)
    model = accelerate(live(name, **options).to(dtype))
    inputs = inputs_of(name, plain)
    with torch.no_grad():
        state = model(**inputs).last_hidden_state
        assert state.dtype == dtype
        right = exact(plain)(**inputs).last_hidden_state
        if dtype == torch.float64 or name == "FNetModel":  # transformers cannot run FNet in bfloat16
            assert relative_error(state, right) < 16 * torch.finfo(dtype).eps
        else:
            assert_as_good_as(state, plain.to(dtype)(**inputs).last_hidden_state, right)


@each_backbone
def test_autocast(name, options):
    plain, model = live(name, **options), accelerate(live(name, **options))
    inputs = inputs_of(name, plain)
    with torch.no_grad():
        right = exact(plain)(**inputs).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            assert ops_run_by(model, **inputs) == ops_of(name, options)
            state = model(**inputs).last_hidden_state
            try:
                error = relative_error(plain(**inputs).last_hidden_state, right)
            except RuntimeError:  # some versions of transformers cannot run FNet, or BigBird over blocks
                error = 8 * torch.finfo(torch.bfloat16).eps
            assert relative_error(state, right) <= 2 * error


@each_backbone
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_fast", "silu", "quick_gelu"])
def test_every_activation_stays_what_it_is(name, options, act):
    plain, model = live(name, hidden_act=act, **options), accelerate(live(name, hidden_act=act, **options))
    inputs = inputs_of(name, plain)
    with torch.no_grad():
        right = exact(plain)(**inputs).last_hidden_state
        assert_as_good_as(model(**inputs).last_hidden_state, plain(**inputs).last_hidden_state, right)


@pytest.mark.parametrize("options", [{"use_bottleneck": False, "hidden_size": 24}, {"use_bottleneck_attention": True}])
@pytest.mark.parametrize("norm", ["no_norm", "layer_norm"])
def test_variants_of_mobilebert(options, norm):
    plain, model = (live("MobileBertModel", normalization_type=norm, **options) for _ in range(2))
    inputs = inputs_of("MobileBertModel", plain)
    with torch.no_grad():
        right = exact(plain)(**inputs).last_hidden_state
        assert ops_run_by(accelerate(model), **inputs) == ops_of("MobileBertModel", {})
        assert_as_good_as(model(**inputs).last_hidden_state, plain(**inputs).last_hidden_state, right)


def test_other_instances_and_classes_are_not_touched():
    modeling = [getattr(transformers, name).__module__ for name, _ in BACKBONES]
    modeling = [__import__(name, fromlist=["_"]) for name in modeling]
    kinds = [kind for module in modeling for kind in vars(module).values() if isinstance(kind, type)]
    before = [dict(vars(kind)) for kind in kinds] + [dict(vars(module)) for module in modeling]
    for name, options in BACKBONES:
        earlier = live(name, **options)
        accelerate(live(name, **options))
        later = live(name, **options)
        inputs = inputs_of(name, earlier)
        assert not ops_run_by(earlier, **inputs) | ops_run_by(later, **inputs)
    assert [dict(vars(kind)) for kind in kinds] + [dict(vars(module)) for module in modeling] == before


# ---- explain and strict ---------------------------------------------------------------------------------------------


@each_model
def test_explain_says_something_of_every_module(name, options):
    model = live(name, **options)
    before = explain(model)
    assert not before.replaced
    assert set(before.refused.values()) == {"it has a replacement: accelerate(model) puts it in"}
    after = explain(accelerate(model))
    assert not after.refused
    assert after.replaced.keys() == before.refused.keys()
    assert after.others == before.others
    told = [*after.replaced, *after.others]
    for path, module in model.named_modules():
        if next(module.children(), None) is None and "replaced" not in path:
            assert any(path == known or path.startswith(f"{known}.") for known in told), path
    text = str(after)
    for op in ops_of(name, options):
        assert op in text
    assert all(len(line) < 160 for line in text.splitlines())


def test_explain_tells_who_is_in_the_way():
    model = accelerate(live("FNetModel"))
    handle = model.encoder.layer[1].fourier.output.register_forward_hook(lambda *_: None)
    model.encoder.layer[0].fourier.output.LayerNorm = nn.RMSNorm(32)
    refused = explain(model).refused
    assert "hooks" in refused["encoder.layer.1.fourier"]
    assert "RMSNorm" in refused["encoder.layer.0.fourier"]
    handle.remove()
    assert explain(model).refused.keys() == {"encoder.layer.0.fourier"}


@pytest.mark.parametrize("name", ["RobertaPreLayerNormModel", "XLMRobertaXLModel"])
def test_chunks_stay_chunks(name):
    plain, model = (live(name, chunk_size_feed_forward=5, num_hidden_layers=1) for _ in range(2))
    ids = inputs_of(name, plain)["input_ids"][:, :20]
    with torch.no_grad():
        torch.testing.assert_close(accelerate(model)(ids)[0], plain(ids)[0])
    assert explain(model).refused == {"encoder.layer.0": "chunk_size_feed_forward is set"}


def test_what_is_handed_on_is_taken_for_the_same_states_only():
    ahead = pre_layer_norm.Ahead([])
    ahead.h, ahead.normalized = torch.ones(2), torch.zeros(2)
    assert ahead.take(ahead.h) is ahead.normalized
    assert ahead.take(torch.ones(2)) is None


class Scaled(transformers.models.fnet.modeling_fnet.FNetFourierTransform):
    def forward(self, hidden_states):
        return (super().forward(hidden_states)[0] * 2,)


def test_what_derives_from_a_replaceable_class_is_left_alone():
    plain, model = live("FNetModel"), live("FNetModel")
    for each in (plain, model):
        each.encoder.layer[0].fourier.__class__ = Scaled
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(NotImplementedError, match=r"encoder\.layer\.0\.fourier: it is a .*Scaled, which may compute"):
        accelerate(model, strict=True)
    assert [type(module) for module in model.modules()] == kinds
    accelerate(model)
    assert type(model.encoder.layer[0].fourier) is Scaled
    inputs = inputs_of("FNetModel", model)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)


def test_strict_names_every_hindrance_and_changes_nothing():
    model = live("MobileBertModel", hidden_act="quick_gelu")
    model.encoder.layer[1].output.register_forward_hook(lambda *_: None)
    before, kinds = traits(model), [type(module) for module in model.modules()]
    with pytest.raises(NotImplementedError, match=r"(?s)layer\.0: the op bottleneck_ffn has no .*layer\.1: output has"):
        accelerate(model, strict=True)
    assert [type(module) for module in model.modules()] == kinds
    assert traits(model) == before


def test_models_of_other_families():
    bert = transformers.BertModel(BERT)
    with pytest.raises(ValueError, match="BertModel is not of a family that this library has"):
        accelerate(bert)
    for function in (accelerate, restore, verify):
        with pytest.raises(TypeError, match=r"this is a builtins\.dict"):
            function({})


def test_ours_stay_as_they_are():
    for name, options in BACKBONES:
        model = getattr(ours, name)(config(name, **options)).eval()
        kinds = [type(module) for module in model.modules()]
        assert accelerate(model, strict=True) is model
        assert restore(model) is model
        assert [type(module) for module in model.modules()] == kinds


def test_a_model_around_one():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = live("MobileBertModel")
            self.other = transformers.BertModel(BERT)

    model = accelerate(Classifier(), strict=True)
    assert ops_run_by(model.encoder, **inputs_of("MobileBertModel", model.encoder)) == ops_of("MobileBertModel", {})
    assert "not of the five families" in explain(model).others["other"]


# ---- verify ---------------------------------------------------------------------------------------------------------


@each_model
def test_verify_agrees(name, options):
    model = accelerate(live(name, **options, hidden_dropout_prob=0.5)).train()
    model.base_model.embeddings.eval()
    before, kinds = traits(model), [type(module) for module in model.modules()]
    report = verify(model, **inputs_of(name, model, labels="For" in name), output_hidden_states=True)
    assert [type(module) for module in model.modules()] == kinds
    assert {path: value[:2] for path, value in traits(model).items()} == {p: value[:2] for p, value in before.items()}
    assert report.worst < 1e-4
    names = {key.split("[")[0] for key in report.differences}
    assert "hidden_states" in names
    assert ("loss" in names) == ("For" in name)


def test_verify_finds_one_wrong_channel(monkeypatch):
    from encoders_fast.models.live import fnet

    right = fnet.fourier_mixing_layer_norm

    def wrong(h, *rest):
        y = right(h, *rest).clone()
        y[..., 5] *= 1.001
        return y

    model = accelerate(live("FNetModel", num_hidden_layers=1))
    model.encoder.layer[0].output.dense.weight.data.zero_()  # so that channels stay apart
    monkeypatch.setattr(fnet, "fourier_mixing_layer_norm", wrong)
    model.encoder.layer[0].output.LayerNorm = nn.Identity()
    found = verify(model, **inputs_of("FNetModel", model)).differences["last_hidden_state"]
    assert found.channel == 5
    assert 2e-4 < found.worst < 2e-3
    assert found.overall < found.worst / 2
    assert "worst channel 5" in str(verify(model, **inputs_of("FNetModel", model)))


def test_verify_needs_something_to_compare():
    with pytest.raises(ValueError, match=r"nothing in this FNetModel is replaced: accelerate\(model\) first"):
        verify(live("FNetModel"), input_ids=torch.ones(1, 4, dtype=torch.long))


def test_verify_leaves_a_cache_alone():
    model = accelerate(live("XLMRobertaXLForCausalLM"))
    ids = inputs_of("XLMRobertaXLForCausalLM", model)["input_ids"]
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    assert verify(model, input_ids=ids[:, :1], past_key_values=cache).worst < 1e-4
    assert cache.get_seq_length() == ids.shape[1]


def test_a_length_of_the_papers_plans():
    """There the random blocks depend on how many positions the model has."""
    options = {**SPARSE, "block_size": 64, "max_position_embeddings": 2048, "num_hidden_layers": 2}
    plain, model = live("BigBirdModel", **options).train(), accelerate(live("BigBirdModel", **options)).train()
    ids = torch.randint(4, 99, (1, 1024))
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0], plain(ids)[0], rtol=1e-4, atol=1e-4)


def test_names():
    for name in ("accelerate", "explain", "restore", "verify"):
        assert name in encoders_fast.__all__
        assert name in dir(encoders_fast)


def test_the_attention_type_may_change():
    plain, model = live("BigBirdModel", **SPARSE), accelerate(live("BigBirdModel", **SPARSE))
    inputs = inputs_of("BigBirdModel", plain)
    with torch.no_grad():
        for value in ("original_full", "block_sparse"):
            for each in (plain, model):
                each.set_attention_type(value)
            assert explain(model).refused == {}
            assert ("block_sparse_attention" in ops_run_by(model, **inputs)) == (value == "block_sparse")
            torch.testing.assert_close(model(**inputs)[0], plain(**inputs)[0])
        model.set_attention_type("original_full")
        plain.set_attention_type("original_full")
        assert torch.equal(restore(model)(**inputs)[0], plain(**inputs)[0])


@pytest.mark.parametrize("name", ["RobertaPreLayerNormModel", "XLMRobertaXLModel", "MobileBertModel"])
def test_attention_runs_where_it_is_faster(name, monkeypatch):
    """In training as well as in evaluation; a mask, a causal model and somebody's own function keep transformers'."""
    monkeypatch.setattr(attention, "_WORTH_BLOCKS", 0)
    plain, model = live(name), accelerate(live(name))
    ids = inputs_of(name, plain)["input_ids"]
    results = []
    for each in (plain, model):
        with _dispatch.record() as calls:
            state = each(ids).last_hidden_state
        state.square().sum().backward()
        results.append((state.detach(), [p.grad for p in each.parameters() if p.grad is not None]))
    assert [op for op, _ in calls].count("block_sparse_attention") == plain.config.num_hidden_layers
    torch.testing.assert_close(*[state for state, _ in results], rtol=1e-4, atol=1e-4)
    mine, theirs = (torch.cat([gradient.flatten() for gradient in gradients]) for _, gradients in results[::-1])
    assert relative_error(mine, theirs.double()) < 1e-3
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    assert "block_sparse_attention" not in ops_run_by(model, input_ids=ids, attention_mask=mask)
    if hasattr(model.config, "is_decoder"):
        decoder = accelerate(live(name, is_decoder=True))
        assert "block_sparse_attention" not in ops_run_by(decoder, input_ids=ids, use_cache=False)
