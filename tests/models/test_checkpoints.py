"""Checkpoints go both ways between transformers and this library, strictly, and mean the same on both sides."""

import inspect

import pytest
import torch
import transformers

import encoders_fast.models as ours
from tests.models.model_cases import LEAVES_PADDING_OUT, MODELS, batch, config, family, pair, randomize, tensors

LANGUAGE_MODELS = [name for name in MODELS if name.endswith(("MaskedLM", "PreTraining", "CausalLM"))]


def _assert_same(one, other, inputs):
    with torch.no_grad():
        for (key, value), (_, expected) in zip(tensors(one(**inputs)), tensors(other(**inputs)), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, msg=key)


def _language_head(model):
    return model.lm_head if hasattr(model, "lm_head") else model.cls.predictions


def _load(library, name, folder, **options):
    if library is ours and family(name) in LEAVES_PADDING_OUT:
        options = {"keep_padding": True, **options}
    model, report = getattr(library, name).from_pretrained(folder, output_loading_info=True, **options)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    assert not report["mismatched_keys"], report
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_safetensors_both_ways(name, tmp_path):
    stock, model = pair(name)
    inputs = batch(name, model.config)
    stock.save_pretrained(tmp_path / "stock")
    model.save_pretrained(tmp_path / "ours")
    _assert_same(_load(ours, name, tmp_path / "stock"), stock, inputs)
    _assert_same(_load(transformers, name, tmp_path / "ours"), stock, inputs)
    _assert_same(_load(ours, name, tmp_path / "ours"), stock, inputs)
    saved = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert (saved.model_type, saved.architectures) == (stock.config.model_type, [name])


@pytest.mark.parametrize("name", MODELS)
def test_bin_both_ways(name, tmp_path):
    """The old format. It is read with weights_only, by transformers' own loader and by torch.load."""
    stock, model = pair(name)
    inputs = batch(name, model.config)
    for folder, source, library in (("stock", stock, ours), ("ours", model, transformers)):
        source.config.save_pretrained(tmp_path / folder)
        torch.save(source.state_dict(), tmp_path / folder / "pytorch_model.bin")
        _assert_same(_load(library, name, tmp_path / folder), stock, inputs)
        fresh = getattr(library, name)(config(name, library))
        fresh.load_state_dict(torch.load(tmp_path / folder / "pytorch_model.bin", weights_only=True), strict=True)
        _assert_same(fresh.eval(), stock, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_head_from_backbone_and_backbone_from_head(name, tmp_path):
    """A pre-training checkpoint is where every head starts from; what it lacks is the same on both sides."""
    source = f"{family(name)}ForPreTraining"
    model = pair(source if hasattr(ours, source) else f"{family(name)}ForMaskedLM")[1]
    model.save_pretrained(tmp_path)
    reports = []
    for library in (transformers, ours):
        options = {"is_decoder": True} if "CausalLM" in name else {}
        loaded, report = getattr(library, name).from_pretrained(tmp_path, output_loading_info=True, **options)
        reports.append({key: set(value) for key, value in report.items() if key != "error_msgs"})
        found = loaded.base_model.state_dict()
        for key, expected in model.base_model.state_dict().items():
            if key in found or not key.startswith("pooler"):
                torch.testing.assert_close(found[key], expected, rtol=0, atol=0, msg=key)
    assert reports[0] == reports[1]


def test_model_without_pooler(tmp_path):
    for library in (transformers, ours):
        bare = library.FNetModel(config("FNetModel", library), add_pooling_layer=False).eval()
        assert bare.pooler is None
        assert not [key for key in bare.state_dict() if "pooler" in key]
    stock, model = pair("FNetModel")
    model.save_pretrained(tmp_path)
    inputs = batch("FNetModel", model.config)
    bare = ours.FNetModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    theirs = transformers.FNetModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    assert list(bare.state_dict()) == list(theirs.state_dict())
    assert bare(**inputs).pooler_output is None
    assert list(bare(**inputs)) == list(theirs(**inputs)) == ["last_hidden_state"]
    with torch.no_grad():
        h, nothing = bare(**inputs, return_dict=False)
    assert nothing is None
    torch.testing.assert_close(h, stock(**inputs).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_loading_in_half_precision(tmp_path):
    _, model = pair("FNetForMaskedLM")
    model.save_pretrained(tmp_path)
    loaded = ours.FNetForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded(**batch("FNetForMaskedLM", model.config)).logits.isfinite().all()
    assert torch.equal(loaded.fnet.embeddings.position_ids, torch.arange(64)[None])


def test_buffers_that_are_not_saved_get_their_values():
    """from_pretrained gives them memory without values, and _init_weights to fill it."""
    model = ours.FNetModel(config("FNetModel"))
    for buffer in model.embeddings.buffers():
        buffer.fill_(7)
    model._init_weights(model.embeddings)
    assert torch.equal(model.embeddings.position_ids, torch.arange(64)[None])
    assert torch.equal(model.embeddings.token_type_ids, torch.zeros(1, 64, dtype=torch.long))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_tied_weights(name):
    stock, model = pair(name)
    for each in (stock, model):
        decoder = each.get_output_embeddings()
        assert decoder.weight is each.get_input_embeddings().weight
        assert decoder.bias is _language_head(each).bias
    untied = getattr(ours, name)(config(name, tie_word_embeddings=False))
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight


@pytest.mark.parametrize("size", [110, 50])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_resize_token_embeddings(name, size, tmp_path):
    models = pair(name)
    for each in models:
        # The mean of what is there, without a random part, so that new rows are the same on both sides.
        takes = inspect.signature(each.resize_token_embeddings).parameters  # transformers' MobileBERT takes less
        each.resize_token_embeddings(size, **({"mean_resizing": False} if "mean_resizing" in takes else {}))
        with torch.no_grad():
            if "MobileBert" in name:
                each.cls.predictions.dense.weight[:, 99:] = 0.75
            each.get_input_embeddings().weight[99:] = 0.25
            each.get_output_embeddings().bias[99:] = 0.5
    stock, model = models
    assert model.config.vocab_size == size
    assert model.get_output_embeddings().out_features == stock.get_output_embeddings().out_features
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_output_embeddings().bias is _language_head(model).bias
    inputs = batch(name, model.config, labels=True)
    assert model(**inputs)["prediction_logits" if "PreTraining" in name else "logits"].shape[-1] == size
    _assert_same(model, stock, inputs)
    model.save_pretrained(tmp_path)
    _assert_same(_load(transformers, name, tmp_path), stock, inputs)


def test_embeddings_can_be_exchanged():
    _, model = pair("FNetForSequenceClassification")
    other = torch.nn.Embedding(7, 32)
    model.set_input_embeddings(other)
    assert model.fnet.embeddings.word_embeddings is other
    assert model.get_input_embeddings() is other
    language_model = pair("FNetForMaskedLM")[1]
    decoder = torch.nn.Linear(32, 7)
    language_model.set_output_embeddings(decoder)
    assert language_model.get_output_embeddings() is decoder
    assert language_model.cls.predictions.bias is decoder.bias
    assert language_model(**batch("FNetForMaskedLM", language_model.config)).logits.shape == (2, 12, 7)


def test_dft_matrices_of_tpu_checkpoints(tmp_path):
    """transformers keeps two matrices per layer in the state dict: they are taken, given back, and never held."""
    options = {"use_tpu_fourier_optimizations": True, "tpu_short_seq_length": 12}
    stock, model = pair("FNetForMaskedLM", **options)  # strict
    assert not [buffer for buffer in model.buffers() if buffer.is_complex()]
    theirs, mine = stock.state_dict(), model.state_dict()
    assert list(mine) == list(theirs)
    matrices = [key for key in theirs if "dft_mat" in key]
    assert len(matrices) == 2 * model.config.num_hidden_layers
    for key in matrices:
        torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=1e-6)
    randomize(model, seed=3)
    stock.load_state_dict(model.state_dict(), strict=True)
    inputs = batch("FNetForMaskedLM", model.config)
    _assert_same(model, stock, inputs)
    # transformers' own from_pretrained leaves such a model without its matrices; ours computes.
    stock.save_pretrained(tmp_path / "stock")
    model.save_pretrained(tmp_path / "ours")
    for folder in ("stock", "ours"):
        _assert_same(_load(ours, "FNetForMaskedLM", tmp_path / folder), stock, inputs)
