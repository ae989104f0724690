"""TensorFlow's and Flax's checkpoints are the same models here; from_pretrained finds and takes them as any other."""

import json
import re
import sys

import msgpack
import numpy as np
import pytest
import torch
import transformers

import encoders_fast.models as ours
from tests.golden.check_other_frameworks import KEPT, differences
from tests.models import other_frameworks_files as files
from tests.models.model_cases import MODELS, batch, config, family, pair, tensors

FAMILIES = {"TF": ("MobileBert", "RobertaPreLayerNorm"), "Flax": ("BigBird", "RobertaPreLayerNorm")}
MODELS_OF = {framework: [name for name in MODELS if family(name) in found] for framework, found in FAMILIES.items()}
CASES = [(framework, name) for framework, names in MODELS_OF.items() for name in names]
FILES = files.FILES


def _saved(framework, name, folder, sharded=False, **options):
    """A model of transformers', saved in `folder` as that framework would."""
    stock = pair(name, **options)[0]
    folder.mkdir(parents=True, exist_ok=True)
    stock.config.save_pretrained(folder)
    files.write(framework, folder, files.weights(framework, stock), sharded)
    return stock


def _assert_same_weights(model, expected):
    found, expected = model.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=key)


def _assert_same_outputs(model, stock, name):
    inputs = batch(name, stock.config)
    with torch.no_grad():
        for (key, value), (_, expected) in zip(tensors(model(**inputs)), tensors(stock(**inputs)), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, msg=key)


# ---- every model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted(KEPT.iterdir()), ids=lambda folder: folder.name)
def test_what_the_frameworks_really_saved(folder):
    name = re.sub("^(TF|Flax)|-.*", "", folder.name)
    errors, report = differences(folder, name, torch.float32)
    assert errors
    # Two frameworks in float32, one layer.
    assert max(errors.values()) < 16 * torch.finfo(torch.float32).eps, errors
    assert {key for key in report["missing_keys"] if "pooler" not in key} == set()
    assert not report["unexpected_keys"]


@pytest.mark.parametrize(("framework", "name"), CASES)
def test_every_model(framework, name, tmp_path):
    for sharded in (False, True):
        folder = tmp_path / str(sharded)
        stock = _saved(framework, name, folder, sharded)
        load = getattr(ours, name).from_pretrained
        model, report = load(folder, keep_padding=True, output_loading_info=True)
        assert not any(report.values()), report
        _assert_same_weights(model, stock)
        if name.endswith(("LM", "PreTraining")):
            assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not model.training
    _assert_same_outputs(model, stock, name)


@pytest.mark.parametrize(("framework", "name"), [case for case in CASES if case[1].endswith(("LM", "PreTraining"))])
def test_untied_decoders(framework, name, tmp_path):
    """TensorFlow's RoBERTa has no decoder; where there is one, the only bias is that beside it."""
    stock = pair(name, tie_word_embeddings=False)[0]
    head = stock.lm_head if "Roberta" in name else stock.cls.predictions
    with torch.no_grad():
        head.decoder.bias.copy_(head.bias)
        if (framework, family(name)) == ("TF", "RobertaPreLayerNorm"):
            head.decoder.weight.copy_(stock.get_input_embeddings().weight)
    stock.config.save_pretrained(tmp_path)
    files.write(framework, tmp_path, files.weights(framework, stock))
    model, report = getattr(ours, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    _assert_same_weights(model, stock)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["MobileBertForMaskedLM", "MobileBertForPreTraining"])
def test_a_decoder_that_has_left_its_words(name, tmp_path):
    """Keras trains MobileBERT's decoder apart, whatever the configuration says."""
    stock = pair(name, tie_word_embeddings=False)[0]
    with torch.no_grad():
        stock.cls.predictions.decoder.bias.copy_(stock.cls.predictions.bias)
    given = config(name)
    assert given.tie_word_embeddings
    given.save_pretrained(tmp_path)
    files.write("TF", tmp_path, files.weights("TF", stock))
    with pytest.warns(UserWarning, match=r"decoder\.weight and .*word_embeddings\.weight differ .* loaded untied"):
        model = getattr(ours, name).from_pretrained(tmp_path, config=given)
    assert given.tie_word_embeddings
    assert not model.config.tie_word_embeddings
    _assert_same_weights(model, stock)
    _assert_same_outputs(model, stock, name)


@pytest.mark.parametrize(
    ("framework", "source"),
    [("TF", "MobileBertForPreTraining"), ("Flax", "BigBirdForPreTraining"), ("Flax", "RobertaPreLayerNormForMaskedLM")],
)
def test_other_heads_and_the_backbone_from_a_head(framework, source, tmp_path):
    """What is missing is what is missing from safetensors, and what is not expected is as well."""
    stock = _saved(framework, source, tmp_path / "other")
    stock.save_pretrained(tmp_path / "pytorch")
    expected = stock.base_model.state_dict()
    for name in [name for name in MODELS_OF[framework] if family(name) == family(source)]:
        options = {"is_decoder": True} if "CausalLM" in name else {}
        (model, report), (_, usual) = (
            getattr(ours, name).from_pretrained(tmp_path / folder, output_loading_info=True, **options)
            for folder in ("other", "pytorch")
        )
        assert report["missing_keys"] == usual["missing_keys"], name
        # Keras's decoder is a weight of its own.
        assert report["unexpected_keys"] - {"cls.predictions.decoder.weight"} == usual["unexpected_keys"], name
        found = model.base_model.state_dict()
        assert {key for key in found.keys() ^ expected.keys() if "pooler" not in key} == set()
        for key in found.keys() & expected.keys():
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize(("framework", "name"), [("TF", "MobileBert"), ("Flax", "BigBird")])
def test_a_head_from_the_backbone(framework, name, tmp_path):
    stock = _saved(framework, f"{name}Model", tmp_path)
    load = getattr(ours, f"{name}ForPreTraining").from_pretrained
    model, report = load(tmp_path, output_loading_info=True)
    _assert_same_weights(model.base_model, stock)
    assert report["missing_keys"]
    assert all(key.startswith("cls.") for key in report["missing_keys"]), report
    assert not report["unexpected_keys"]
    _, untied = load(tmp_path, tie_word_embeddings=False, output_loading_info=True)
    decoder = {f"cls.predictions.decoder.{parameter}" for parameter in ("weight", "bias")}
    assert untied["missing_keys"] == report["missing_keys"] | decoder  # not the words


# ---- from_pretrained's options --------------------------------------------------------------------------------------


def test_dtypes(tmp_path):
    stock = _saved("Flax", "BigBirdModel", tmp_path)
    for options, dtype in (
        ({}, torch.float32),
        ({"dtype": "auto"}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
    ):
        model = ours.BigBirdModel.from_pretrained(tmp_path, **options)
        assert model.dtype == dtype == model.config.dtype
        torch.testing.assert_close(model.pooler.weight, stock.pooler.weight.to(dtype), rtol=0, atol=0)
    weights = {
        name: files.packed((values.view("uint32") >> 16).astype("uint16"), "bfloat16")
        for name, values in files.weights("Flax", stock).items()
    }
    files.write_msgpack(tmp_path / "flax_model.msgpack", weights)
    model = ours.BigBirdModel.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    exact = stock.pooler.weight.numpy(force=True).view("uint32") & 0xFFFF0000
    torch.testing.assert_close(model.pooler.weight.float(), torch.from_numpy(exact.view("float32")), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["<f2", "<f8", ">f4"])
def test_numbers_of_other_types_in_h5(dtype, tmp_path):
    stock = _saved("TF", "MobileBertModel", tmp_path)
    files.write("TF", tmp_path, {name: values.astype(dtype) for name, values in files.weights("TF", stock).items()})
    model = ours.MobileBertModel.from_pretrained(tmp_path)
    native = torch.from_numpy(np.zeros(1, np.dtype(dtype).newbyteorder("="))).dtype
    assert model.dtype == native
    expected = stock.pooler.dense.weight.to(native)
    torch.testing.assert_close(model.pooler.dense.weight, expected, rtol=0, atol=0)


def test_chunks_and_scalars(tmp_path):
    """Flax cuts arrays above a size, and packs numpy's scalars apart."""
    stock = _saved("Flax", "RobertaPreLayerNormModel", tmp_path)
    weights = files.weights("Flax", stock)
    for name in ("embeddings/word_embeddings/embedding", "LayerNorm/scale"):
        weights[name] = files.in_chunks(weights[name], 30)
    bias = files.packed(weights["LayerNorm/bias"])
    weights["LayerNorm/bias"] = msgpack.ExtType(3, bias.data)
    files.write_msgpack(tmp_path / "flax_model.msgpack", weights)
    _assert_same_weights(ours.RobertaPreLayerNormModel.from_pretrained(tmp_path), stock)


def test_options_are_transformers_own(tmp_path):
    name = "MobileBertForSequenceClassification"
    load = ours.MobileBertForSequenceClassification.from_pretrained
    stock = _saved("TF", name, tmp_path / "sub" / "folder")
    model = load(tmp_path, subfolder="sub/folder", attn_implementation="eager", output_attentions=True)
    _assert_same_weights(model, stock)
    assert model.config._attn_implementation == "eager"
    assert len(model(**batch(name, model.config)).attentions) == 2
    assert model.name_or_path == model.config.name_or_path == str(tmp_path)
    folder = tmp_path / "sub" / "folder"
    given = config(name, hidden_dropout_prob=0.25)
    assert load(folder, config=given).config.hidden_dropout_prob == 0.25
    assert load(folder, config=str(folder), hidden_dropout_prob=0.5).config.hidden_dropout_prob == 0.5
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(folder, num_labels=7)
    model, report = load(folder, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True)
    assert {key for key, *_ in report["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert model.classifier.out_features == 7
    bare = ours.MobileBertModel.from_pretrained(folder, add_pooling_layer=False)
    assert bare.pooler is None
    model.save_pretrained(tmp_path / "converted")
    assert (tmp_path / "converted" / "model.safetensors").exists()
    _assert_same_weights(load(tmp_path / "converted"), model)


@pytest.mark.parametrize("framework", FILES)
def test_a_file_by_its_own_name(framework, tmp_path, monkeypatch):
    name = "RobertaPreLayerNormModel"
    stock = _saved(framework, name, tmp_path)
    _assert_same_weights(ours.RobertaPreLayerNormModel.from_pretrained(tmp_path / FILES[framework]), stock)
    (tmp_path / "config.json").rename(tmp_path / "elsewhere.json")
    monkeypatch.chdir(tmp_path)
    _assert_same_weights(ours.RobertaPreLayerNormModel.from_pretrained(FILES[framework], config=config(name)), stock)


def test_generation_configuration(tmp_path):
    _saved("Flax", "BigBirdForCausalLM", tmp_path)
    load = ours.BigBirdForCausalLM.from_pretrained
    assert load(tmp_path).generation_config.max_length != 17
    transformers.GenerationConfig(max_length=17).save_pretrained(tmp_path)
    assert load(tmp_path).generation_config.max_length == 17
    assert (
        load(tmp_path, generation_config=transformers.GenerationConfig(max_length=9)).generation_config.max_length == 9
    )


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("framework", "name"), [("TF", "MobileBertModel"), ("Flax", "BigBirdModel")])
def test_from_the_hub(framework, name, sharded, tmp_path):
    """From what the hub's cache has, which is how transformers finds it without a network."""
    commit = "0" * 40
    repository = tmp_path / "models--someone--something"
    stock = _saved(framework, name, repository / "snapshots" / commit, sharded)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "refs" / "other").write_text(commit)
    load = getattr(ours, name).from_pretrained
    for options in ({}, {"revision": "other"}, {"from_tf" if framework == "TF" else "from_flax": True}):
        model = load("someone/something", cache_dir=tmp_path, local_files_only=True, **options)
        _assert_same_weights(model, stock)
        assert model.name_or_path == "someone/something"
    with pytest.raises(OSError, match=r"couldn.t connect|someone/nothing"):
        load("someone/nothing", cache_dir=tmp_path, local_files_only=True)


def test_auto_classes(tmp_path):
    stock = _saved("TF", "MobileBertForMaskedLM", tmp_path)
    undo = ours.register_auto_classes("mobilebert")
    try:
        for options in ({}, {"from_tf": True}):
            model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, **options)
            assert type(model) is ours.MobileBertForMaskedLM
            _assert_same_weights(model, stock)
    finally:
        undo()


# ---- which weights --------------------------------------------------------------------------------------------------


def test_weights_for_pytorch_come_first(tmp_path):
    """... unless others are asked for."""
    name = "RobertaPreLayerNormModel"
    load = ours.RobertaPreLayerNormModel.from_pretrained
    stock = _saved("Flax", name, tmp_path)
    weights = files.weights("TF", stock)
    files.write("TF", tmp_path, {name: values + 1 for name, values in weights.items()})
    tensorflow = load(tmp_path)  # the first of the two
    _assert_same_weights(load(tmp_path, from_flax=True), stock)
    other = pair(name, hidden_act="relu")[1]
    with torch.no_grad():
        other.LayerNorm.bias += 5
    other.save_pretrained(tmp_path)
    _assert_same_weights(load(tmp_path), other)
    _assert_same_weights(load(tmp_path, from_flax=True), stock)
    _assert_same_weights(load(tmp_path, from_tf=True), tensorflow)
    torch.testing.assert_close(tensorflow.LayerNorm.bias, stock.LayerNorm.bias + 1, rtol=0, atol=0)


def test_a_broken_checkpoint_for_pytorch_is_not_passed_over(tmp_path):
    _saved("TF", "MobileBertModel", tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"pooler.dense.bias": "lost.safetensors"}}))
    with pytest.raises(OSError, match=r"lost\.safetensors"):
        ours.MobileBertModel.from_pretrained(tmp_path)


def test_what_is_asked_for_and_not_there(tmp_path):
    load = ours.BigBirdModel.from_pretrained
    config("BigBirdModel").save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"no flax_model\.msgpack and no flax_model\.msgpack\.index\.json"):
        load(tmp_path, from_flax=True)
    with pytest.raises(OSError, match=r"no tf_model\.h5 and"):
        load(tmp_path, from_tf=True)
    with pytest.raises(ValueError, match="from_tf and from_flax are both True"):
        load(tmp_path, from_tf=True, from_flax=True)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):  # transformers' own
        load(tmp_path)
    _saved("Flax", "BigBirdModel", tmp_path)
    for options in ({"use_safetensors": True}, {"variant": "fp16"}):
        with pytest.raises(OSError, match=r"no file named model\."):
            load(tmp_path, **options)


# ---- what is not installed, and what is no more ---------------------------------------------------------------------


@pytest.mark.parametrize(("framework", "name"), [("TF", "MobileBertModel"), ("Flax", "BigBirdModel")])
def test_without_the_extra(framework, name, tmp_path, monkeypatch):
    _saved(framework, name, tmp_path)
    library = {"TF": "h5py", "Flax": "msgpack"}[framework]
    monkeypatch.setitem(sys.modules, library, None)
    sentence = rf"{FILES[framework]} needs {library}: pip install 'encoders-fast\[checkpoints\]'"
    with pytest.raises(ImportError, match=sentence):
        getattr(ours, name).from_pretrained(tmp_path)


def test_names_of_the_frameworks_classes(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # they are explained without it
    names = {prefix + name: name for prefix, found in MODELS_OF.items() for name in found}
    names |= {
        f"{prefix}{each}PreTrainedModel": f"{each}PreTrainedModel" for prefix, e in FAMILIES.items() for each in e
    }
    names |= {"TFMobileBertMainLayer": "MobileBertModel"}
    for name, replacement in names.items():
        file = "tf_model.h5" if name.startswith("TF") else "flax_model.msgpack"
        sentence = f"use {replacement}, whose from_pretrained reads {re.escape(file)} too"
        with pytest.raises(AttributeError, match=sentence):
            getattr(ours, name)
        with pytest.raises(ImportError, match=sentence):
            exec(f"from encoders_fast.models import {name}")
        assert not hasattr(ours, name)
        assert name not in dir(ours)
    for name in ("TFBigBirdModel", "FlaxMobileBertModel", "TFFNetModel", "TFMobileBertForEverything", "TF"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(ours, name)
