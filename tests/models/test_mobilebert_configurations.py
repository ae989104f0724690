"""MobileBERT against transformers over configurations, where transformers can compute them."""

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import encoders_fast.models as ours
from encoders_fast._dispatch import record
from tests.models.model_cases import assert_outputs_as_good, batch, config, exact, pair, randomize

NAME = "MobileBertForPreTraining"
CONFIGURATIONS = {
    "no trigram": {"trigram_input": False},
    "no trigram, one width": {"trigram_input": False, "embedding_size": 32},
    "trigram, one width": {"embedding_size": 32},
    "no bottleneck": {"use_bottleneck": False},
    "no bottleneck, layer_norm": {"use_bottleneck": False, "normalization_type": "layer_norm"},
    "no bottleneck, keys not shared": {"use_bottleneck": False, "key_query_shared_bottleneck": False},
    "bottleneck attention": {"use_bottleneck_attention": True},
    "bottleneck attention, keys not shared": {"use_bottleneck_attention": True, "key_query_shared_bottleneck": False},
    "layer_norm": {"normalization_type": "layer_norm"},
    "layer_norm, large epsilon": {"normalization_type": "layer_norm", "layer_norm_eps": 0.5},
    "one feed-forward block": {"num_feedforward_networks": 1},
    "four feed-forward blocks": {"num_feedforward_networks": 4},
    "no activation behind the pooler": {"classifier_activation": False},
    "one head": {"num_attention_heads": 1},
    "one layer": {"num_hidden_layers": 1},
    "one token type": {"type_vocab_size": 1},
    "no padding token": {"pad_token_id": None},
    "untied": {"tie_word_embeddings": False},
    "one width": {"intra_bottleneck_size": 32, "intermediate_size": 32},
}
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")  # E = H: dense is empty


def _assert_as_stock(stock, model, inputs):
    with torch.no_grad():
        plain, output, right = (each(**inputs, output_hidden_states=True) for each in (stock, model, exact(stock)))
    assert_outputs_as_good(output, plain, right)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configuration(options, train):
    stock, model = (each.train(train) for each in pair(NAME, **options))
    with record() as calls:
        _assert_as_stock(stock, model, batch(NAME, model.config))
    assert len(calls) == 2 * model.config.num_hidden_layers


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_gradients(options):
    models = pair(NAME, torch.float64, **options)
    for each in models:
        each.train()(**batch(NAME, each.config, labels=True)).loss.backward()
    theirs = dict(models[0].named_parameters())
    for key, parameter in models[1].named_parameters():
        assert (parameter.grad is None) == (theirs[key].grad is None), key
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[key].grad, rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize("normalization", ["no_norm", "layer_norm"])
def test_query_and_key_of_the_wide_stream(normalization):
    """transformers builds query and key for the narrow stream, feeds them the wide one and raises. Given the width
    that they are fed, it computes what Google's own code does, and so do we."""
    options = {"key_query_shared_bottleneck": False, "normalization_type": normalization}
    # The pooler's tanh is saturated: its error is a few numbers', by the seed from 0.1 to 6 times plain PyTorch's.
    options |= {"classifier_activation": False}
    stock = transformers.MobileBertModel(config("MobileBertModel", transformers, **options))
    model = ours.MobileBertModel(config("MobileBertModel", **options)).eval()
    inputs = batch("MobileBertModel", model.config)
    with pytest.raises(RuntimeError):
        stock(**inputs)
    for layer in stock.encoder.layer:
        layer.attention.self.query, layer.attention.self.key = nn.Linear(32, 24), nn.Linear(32, 24)
    randomize(stock)
    model.load_state_dict(stock.state_dict(), strict=True)
    with torch.no_grad():
        _compare(model, stock.eval(), copy.deepcopy(stock).double(), inputs)


def _compare(model, stock, wide, inputs):
    assert_outputs_as_good(model(**inputs), stock(**inputs), wide(**inputs))


@pytest.mark.parametrize("act", ["relu", "gelu", "gelu_new", "silu", "swish", "tanh", "quick_gelu"])
def test_activation_by_name(act):
    stock, model = pair(NAME, hidden_act=act)
    with record() as calls:
        _assert_as_stock(stock, model, batch(NAME, model.config))
    # Those that the ops do not have run in plain PyTorch.
    fused = act in ("relu", "gelu", "gelu_new", "silu", "swish")
    assert len(calls) == (2 * model.config.num_hidden_layers if fused else 0)


@pytest.mark.parametrize("act", [F.relu, torch.relu, F.gelu, F.softplus, nn.Hardswish(), lambda x: x.clamp(-1, 1)])
def test_activation_by_function(act):
    name = "MobileBertForMaskedLM"
    model = getattr(ours, name)(config(name, hidden_act=act)).eval()
    randomize(model)
    stock = getattr(transformers, name)(config(name, transformers)).eval()
    stock.load_state_dict(model.state_dict(), strict=True)
    for module in stock.modules():
        for attribute in ("intermediate_act_fn", "transform_act_fn"):
            if hasattr(module, attribute):
                module._modules.pop(attribute, None)
                setattr(module, attribute, act)
    with torch.no_grad():
        _compare(model, stock, copy.deepcopy(stock).double(), batch(name, model.config))


def test_activations_that_differ():
    """Nothing forbids to exchange one: the ops have one for all blocks, so this layer does without them."""
    _, model = pair("MobileBertModel")
    inputs = batch("MobileBertModel", model.config)
    before = model(**inputs).last_hidden_state
    model.encoder.layer[1].ffn[0].intermediate.intermediate_act_fn = nn.GELU()
    with record() as calls:
        after = model(**inputs).last_hidden_state
    assert len(calls) == 2
    assert not torch.allclose(before, after, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_attention_heads": 5}, r"width, 24, must be a multiple of num_attention_heads, 5"),
        ({"num_feedforward_networks": 0}, "num_feedforward_networks must be at least 1; it is 0"),
        ({"normalization_type": "rms_norm"}, "normalization_type must be .*; it is 'rms_norm'"),
        ({"embedding_size": 33}, "an embedding_size up to hidden_size, 32; it is 33"),
        ({"hidden_act": "cosine"}, "hidden_act 'cosine' is unknown"),
    ],
)
def test_bad_configuration(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ours.MobileBertForMaskedLM(config("MobileBertForMaskedLM", **options))


def test_configuration_goes_both_ways(tmp_path):
    """Options that only ours has are not in the file where they say nothing."""
    mine = config("MobileBertModel", hidden_act=F.gelu)
    mine.save_pretrained(tmp_path)
    assert "pruned_heads" not in (tmp_path / "config.json").read_text()
    theirs = transformers.MobileBertConfig.from_pretrained(tmp_path)
    assert theirs.hidden_act == "gelu"
    theirs.save_pretrained(tmp_path)
    again = ours.MobileBertConfig.from_pretrained(tmp_path)
    assert again.true_hidden_size == mine.true_hidden_size == 24
    default = ours.MobileBertConfig().to_dict()
    stock = transformers.MobileBertConfig().to_dict()
    assert {k: v for k, v in default.items() if k != "transformers_version"} == {
        k: v for k, v in stock.items() if k != "transformers_version"
    }


def test_classifier_dropout():
    for probability, expected in ((None, 0.3), (0.2, 0.2), (0.0, 0.0)):
        options = {"classifier_dropout": probability, "hidden_dropout_prob": 0.3}
        for name in ("MobileBertForSequenceClassification", "MobileBertForTokenClassification"):
            for library in (transformers, ours):
                assert getattr(library, name)(config(name, library, **options)).dropout.p == expected


def test_token_logits_without_the_concatenation():
    """No tensor of hidden_size x vocab_size is made."""
    _, model = pair("MobileBertForMaskedLM", vocab_size=5000)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not func.is_view:
                sizes.append(result.numel())
            return result

    with torch.no_grad(), Sizes():
        logits = model(**batch("MobileBertForMaskedLM", model.config)).logits
    assert max(sizes) == logits.numel() < 32 * 5000
    assert sizes.count(logits.numel()) <= 2  # the product, and what is added to it in place


def test_decoder_under_an_adapter():
    """A decoder that was wrapped is called, and its result not written into."""
    _, model = pair("MobileBertForMaskedLM")
    inputs = batch("MobileBertForMaskedLM", model.config)
    before = model(**inputs).logits
    seen = []
    model.cls.predictions.decoder.register_forward_hook(lambda module, args, y: seen.append((y, y.clone())))
    torch.testing.assert_close(model(**inputs).logits, before)
    ((held, as_it_was),) = seen
    assert torch.equal(held, as_it_was)
