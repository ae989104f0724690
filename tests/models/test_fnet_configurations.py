"""FNet against transformers over configurations and lengths, where transformers can compute them."""

import math

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import encoders_fast.models as ours
from tests.models.model_cases import TOKENS, assert_outputs_as_good, batch, config, exact, pair, randomize

CONFIGURATIONS = {
    "odd width": {"hidden_size": 33, "intermediate_size": 10},
    "prime width": {"hidden_size": 31, "intermediate_size": 61},
    "width of one": {"hidden_size": 1, "intermediate_size": 3},
    "one token type": {"type_vocab_size": 1},
    "no padding token": {"pad_token_id": None},
    "large epsilon": {"layer_norm_eps": 0.5},
    "one layer": {"num_hidden_layers": 1},
    "no layer": {"num_hidden_layers": 0},
    "chunks": {"chunk_size_feed_forward": 4},
    "untied": {"tie_word_embeddings": False},
    "short and wide": {"max_position_embeddings": TOKENS, "hidden_size": 128},
    "matrices": {"use_tpu_fourier_optimizations": True, "tpu_short_seq_length": TOKENS},
    "axis by axis": {
        "use_tpu_fourier_optimizations": True,
        "tpu_short_seq_length": TOKENS,
        "max_position_embeddings": 4097,
    },
}
ACTIVATIONS = ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "tanh", "quick_gelu", "relu2"]


def _assert_as_stock(stock, model, inputs):
    with torch.no_grad():
        theirs, output = (each(**inputs, output_hidden_states=True) for each in (stock, model))
    assert_outputs_as_good(output, theirs, _truth(stock, inputs))


def _truth(stock, inputs):
    """transformers' DFT matrices are complex64 in float64 models too: the exact answer comes without them."""
    if stock.config.use_tpu_fourier_optimizations:
        plain = type(stock)(type(stock.config)(**{**stock.config.to_dict(), "use_tpu_fourier_optimizations": False}))
        plain.load_state_dict({k: v for k, v in stock.state_dict().items() if "dft_mat" not in k})
        stock = plain.eval()
    with torch.no_grad():
        return exact(stock)(**inputs, output_hidden_states=True)


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configuration(options):
    stock, model = pair("FNetForPreTraining", **options)
    _assert_as_stock(stock, model, batch("FNetForPreTraining", model.config, labels=True))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    stock, model = pair("FNetForMaskedLM", hidden_act=name)
    _assert_as_stock(stock, model, batch("FNetForMaskedLM", model.config))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 7), (1, 61), (2, 64), (5, 48)], ids=str)
def test_length(shape):
    stock, model = pair("FNetModel")
    _assert_as_stock(stock, model, batch("FNetModel", model.config, B=shape[0], T=shape[1]))


@pytest.mark.parametrize("length", [1, 5, TOKENS, 64])
def test_tpu_options_give_the_right_transform_at_every_length(length):
    """transformers raises at any length but tpu_short_seq_length."""
    stock, model = pair("FNetModel")
    other = ours.FNetModel(config("FNetModel", use_tpu_fourier_optimizations=True, tpu_short_seq_length=TOKENS)).eval()
    other.load_state_dict(model.state_dict())
    _assert_as_stock(stock, other, batch("FNetModel", model.config, T=length))


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_chunks_need_not_divide_the_length(chunk):
    """transformers raises where they do not."""
    stock, model = pair("FNetModel")
    chunked = ours.FNetModel(config("FNetModel", chunk_size_feed_forward=chunk)).eval()
    chunked.load_state_dict(model.state_dict())
    _assert_as_stock(stock, chunked, batch("FNetModel", model.config))


@pytest.mark.parametrize("function", [F.relu, torch.tanh, lambda x: x * x.sigmoid()], ids=["relu", "tanh", "silu"])
def test_activation_by_callable(function):
    """As transformers documents; from 5.17 on its own configuration refuses it."""
    name = {F.relu: "relu", torch.tanh: "tanh"}.get(function, "silu")
    stock, _ = pair("FNetForMaskedLM", hidden_act=name)
    model = ours.FNetForMaskedLM(config("FNetForMaskedLM", hidden_act=function)).eval()
    model.load_state_dict(stock.state_dict())
    _assert_as_stock(stock, model, batch("FNetForMaskedLM", model.config))


def test_activation_with_parameters_is_part_of_the_model():
    act = nn.PReLU()
    model = ours.FNetModel(config("FNetModel", hidden_act=act))
    randomize(model)
    model(**batch("FNetModel", model.config)).last_hidden_state.square().mean().backward()
    assert "encoder.layer.1.intermediate.intermediate_act_fn.weight" in model.state_dict()
    assert act.weight.grad.item() != 0


def test_callable_is_saved_by_its_name(tmp_path):
    config("FNetModel", hidden_act=F.relu).save_pretrained(tmp_path)
    assert transformers.FNetConfig.from_pretrained(tmp_path).hidden_act == "relu"
    unnamed = config("FNetModel", hidden_act=lambda x: x)
    assert "lambda" in repr(unnamed)
    with pytest.raises(ValueError, match=r"hidden_act .*lambda.* cannot be saved"):
        unnamed.save_pretrained(tmp_path)


@pytest.mark.parametrize(("hidden_act", "error"), [("gleu", ValueError), (3, TypeError)])
def test_activation_that_does_not_exist(hidden_act, error):
    with pytest.raises(error, match=f"hidden_act.*{hidden_act}"):
        ours.FNetModel(config("FNetModel", hidden_act=hidden_act))


def test_fourier_norm_ortho():
    """Mixing divided by sqrt(T * D): checked layer by layer against the expression itself."""
    model = ours.FNetModel(config("FNetModel", fourier_norm="ortho")).double().eval()
    randomize(model)
    inputs = batch("FNetModel", model.config)
    with torch.no_grad():
        h = model(**inputs, output_hidden_states=True).hidden_states
        for before, after, layer in zip(h, h[1:], model.encoder.layer, strict=False):
            mixed = torch.fft.fftn(before, dim=(1, 2)).real / math.sqrt(before.shape[1] * before.shape[2])
            mid = layer.fourier.output.LayerNorm(before + mixed)
            torch.testing.assert_close(layer.feed_forward(mid), after)


def test_stock_configuration_and_ours_are_one_to_the_models():
    stock = config("FNetModel", transformers)
    model = ours.FNetModel(stock)
    assert model.config is stock
    mine = config("FNetModel")
    assert isinstance(mine, transformers.FNetConfig)
    assert mine.model_type == stock.model_type == "fnet"
    transformers.FNetModel(mine)
    differences = {k for k in mine.to_dict() if mine.to_dict()[k] != stock.to_dict().get(k)}
    assert differences <= {"fourier_norm"}
