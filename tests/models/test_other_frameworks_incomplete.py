"""Every weight in TensorFlow's and Flax's checkpoints has its place, and no backbone is random in part: or an error
says which."""

import re

import numpy as np
import pytest
import torch

import encoders_fast.models as ours
from tests.models import other_frameworks_files as files
from tests.models.model_cases import MODELS, config, family, pair

FRAMEWORKS = {"TF": ("MobileBert", "RobertaPreLayerNorm"), "Flax": ("BigBird", "RobertaPreLayerNorm")}
BACKBONES = [(framework, f"{each}Model") for framework, found in FRAMEWORKS.items() for each in found]
MASKED = [(framework, name.replace("Model", "ForMaskedLM")) for framework, name in BACKBONES]
SHARDED = {False: "whole", True: "in shards"}
sharded = pytest.mark.parametrize("sharded", SHARDED, ids=SHARDED.get)


def _saved(framework, name, folder, keep=lambda path: True, sharded=False, **options):
    """The weights of a model of transformers' that are to be kept, as that framework would save them."""
    stock = pair(name, **options)[0]
    stock.config.save_pretrained(folder)
    weights = {path: values for path, values in files.weights(framework, stock).items() if keep(path)}
    files.write(framework, folder, weights, sharded)
    return stock, weights


def _load(name, folder, **options):
    return getattr(ours, name).from_pretrained(folder, output_loading_info=True, **options)


def _refused(name, folder, **options):
    """What from_pretrained says where it must raise."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the sentence is returned
        _load(name, folder, **options)
    return str(caught.value)


# ---- layers ---------------------------------------------------------------------------------------------------------


@sharded
@pytest.mark.parametrize(("framework", "name"), [*BACKBONES, *MASKED])
def test_numbers_of_layers(framework, name, sharded, tmp_path):
    """Of the checkpoint and of the configuration, from the file or from the caller."""
    stock, weights = _saved(framework, name, tmp_path, sharded=sharded)
    for layers, sentence in (
        (1, "no .* model with this configuration has the checkpoint's "),
        (4, "the checkpoint lacks the backbone's "),
    ):
        numbers = rf"; layers in the checkpoint: 2, in the configuration \(num_hidden_layers\): {layers}"
        per_layer = sum("encoder.layer.1." in key for key in stock.state_dict())
        count = per_layer * abs(layers - 2)
        for options in ({"num_hidden_layers": layers}, {"config": config(name, num_hidden_layers=layers)}):
            said = _refused(name, tmp_path, **options)
            assert re.fullmatch(f"{sentence}(.*) and {count - 8} more{numbers}", said), said
            listed = re.split(", (?![0-9)])", re.sub(f"^{sentence}| and {count - 8} more{numbers}$", "", said))
            if layers == 1:
                shapes = {path: str(values.shape) for path, values in weights.items()}
                assert all(path.split(" ")[0] in shapes for path in listed), listed
                assert all(re.search(r"/layer(_\._|/)1/", path) for path in listed), listed
            else:
                assert all(re.search(r"encoder\.layer\.[23]\.", key) for key in listed), listed
            assert len(listed) == 8


def test_layers_that_have_two_digits(tmp_path):
    """2 is not after 10, and the tenth is not the first."""
    _saved("Flax", "BigBirdModel", tmp_path, num_hidden_layers=11)
    _, report = _load("BigBirdModel", tmp_path)
    assert not any(report.values()), report
    said = _refused("BigBirdModel", tmp_path, num_hidden_layers=10)
    assert all("/layer/10/" in part for part in re.findall(r"encoder/\S+", said)), said
    assert said.endswith("layers in the checkpoint: 11, in the configuration (num_hidden_layers): 10")


def test_a_checkpoint_with_a_hole(tmp_path):
    _saved("Flax", "BigBirdModel", tmp_path, lambda path: "/layer/1/" not in path, num_hidden_layers=3)
    said = _refused("BigBirdModel", tmp_path)
    assert "the checkpoint lacks the backbone's encoder.layer.1." in said
    assert said.endswith("layers in the checkpoint: 2, in the configuration (num_hidden_layers): 3")


def test_other_numbers_than_the_layers(tmp_path):
    """MobileBERT's feed-forward networks are counted too."""
    _saved("TF", "MobileBertModel", tmp_path)  # three, of which the last is no part of the list
    said = _refused("MobileBertModel", tmp_path, num_feedforward_networks=2)
    assert said.startswith("no mobilebert model with this configuration has the checkpoint's ")
    assert "/layer_._0/ffn.1/" in said
    assert "layers in" not in said
    said = _refused("MobileBertModel", tmp_path, num_feedforward_networks=4)
    assert "lacks the backbone's encoder.layer.0.ffn.2." in said


# ---- what is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("framework", "name"), [*BACKBONES, *MASKED])
def test_no_weights_at_all(framework, name, tmp_path):
    _saved(framework, name, tmp_path, lambda path: False)
    file = tmp_path / files.FILES[framework]
    assert _refused(name, tmp_path) == f"there are no weights in {file}"
    _saved(framework, name, tmp_path, sharded=True)
    shards = sorted(tmp_path.glob(f"*-of-00003{file.suffix}"))
    for shard in shards:
        shard.write_bytes(file.read_bytes())
    file.unlink()
    assert _refused(name, tmp_path) == f"there are no weights in {', '.join(map(str, shards))}"
    files.write(framework, tmp_path, {}, sharded=True)
    assert _refused(name, tmp_path) == f"there are no weights in the shards that the index of {tmp_path} names"


@sharded
@pytest.mark.parametrize(("framework", "name"), [*BACKBONES, *MASKED])
def test_half_of_the_weights(framework, name, sharded, tmp_path):
    stock = pair(name)[0]
    stock.config.save_pretrained(tmp_path)
    weights = files.weights(framework, stock)
    files.write(framework, tmp_path, dict(list(weights.items())[: len(weights) // 2]), sharded)
    said = _refused(name, tmp_path)
    assert re.search(r"^the checkpoint lacks the backbone's .*encoder\.layer\.1\..* and \d+ more", said), said


@pytest.mark.parametrize(("framework", "name"), BACKBONES)
def test_each_weight_of_the_backbone(framework, name, tmp_path):
    """Without any one of them there is no model, with or without a head."""
    options = {"num_feedforward_networks": 1} if "MobileBert" in name else {}
    _, weights = _saved(framework, name, tmp_path, num_hidden_layers=1, **options)
    masked = name.replace("Model", "ForMaskedLM")
    for i, lost in enumerate(weights):
        files.write(framework, tmp_path, {path: values for path, values in weights.items() if path != lost})
        pooler = "pooler" in lost
        said = _refused(name if pooler or i % 4 else masked, tmp_path)
        key = re.match(r"the checkpoint lacks the backbone's (\S+)$", said)
        assert key, (lost, said)
        assert key[1].split(".")[-2].strip("_0123456789") in lost


def test_heads_and_their_poolers_may_be_new(tmp_path):
    for framework, name in BACKBONES:
        folder = tmp_path / framework / name
        _saved(framework, name, folder, lambda path: "pooler" not in path)
        for each in (each for each in MODELS if family(each) == family(name)):
            options = {"is_decoder": True} if "CausalLM" in each else {}
            model, report = _load(each, folder, **options)
            backbone = {key for key in model.state_dict() if key.startswith(model.base_model_prefix)}
            assert {key for key in report["missing_keys"] & backbone if "pooler" not in key} == set(), each
            assert model.base_model is model or report["missing_keys"] - backbone, each


def test_cross_attention_may_be_new_as_a_whole(tmp_path):
    """As where an encoder becomes a decoder; a checkpoint with some of it has to have all."""
    name = "RobertaPreLayerNormForCausalLM"
    decoder = {"is_decoder": True, "add_cross_attention": True}
    _saved("Flax", "RobertaPreLayerNormForMaskedLM", tmp_path / "encoder")
    _, report = _load(name, tmp_path / "encoder", **decoder)
    assert report["missing_keys"]
    assert all(".crossattention." in key for key in report["missing_keys"]), report
    _saved("Flax", name, tmp_path / "decoder", **decoder)
    assert not any(_load(name, tmp_path / "decoder")[1].values())
    assert all(
        key.startswith("lm_head")
        for key in _load("RobertaPreLayerNormModel", tmp_path / "decoder")[1]["unexpected_keys"]
    )
    said = _refused(name, tmp_path / "decoder", add_cross_attention=False)
    assert "no roberta-prelayernorm model with this configuration has" in said
    assert "/crossattention/" in said
    _saved("Flax", name, tmp_path / "part", lambda path: "1/crossattention" not in path, **decoder)
    assert "lacks the backbone's roberta_prelayernorm.encoder.layer.1.crossattention." in _refused(
        name, tmp_path / "part"
    )


# ---- what is left over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("framework", "name"), MASKED)
def test_weights_that_no_model_has(framework, name, tmp_path):
    stock, weights = _saved(framework, name, tmp_path)
    prefix = stock.base_model_prefix
    last = ":0" if framework == "TF" else ""
    extra = {
        f"{prefix}/encoder/surprise/kernel{last}": np.ones((2, 5), np.float32),
        f"adapter/bias{last}": np.ones(3, np.float32),
    }
    files.write(framework, tmp_path, weights | extra)
    for each in (name, f"{family(name)}Model"):
        said = _refused(each, tmp_path)
        listed = f"adapter/bias{last} (3,), {prefix}/encoder/surprise/kernel{last} (5, 2)"
        assert said == f"no {stock.config.model_type} model with this configuration has the checkpoint's {listed}"


def test_weights_under_two_names(tmp_path):
    """With and without the backbone's prefix: only one of them could be loaded."""
    _, weights = _saved("Flax", "BigBirdForMaskedLM", tmp_path)
    path = "embeddings/position_embeddings/embedding"
    files.write("Flax", tmp_path, weights | {path: 1 + weights[f"bert/{path}"]})
    for name in ("BigBirdForMaskedLM", "BigBirdModel"):
        said = _refused(name, tmp_path)
        assert said == f"embeddings.position_embeddings.weight has two values, bert/{path} and {path}"


@pytest.mark.parametrize("name", ["BigBirdForQuestionAnswering", "MobileBertForQuestionAnswering"])
def test_another_head_whatever_the_configuration(name, tmp_path):
    framework = "Flax" if "BigBird" in name else "TF"
    _saved(framework, name, tmp_path)
    options = (
        {"attention_type": "block_sparse", "random_plan": "anywhere"} if framework == "Flax" else {}
    )  # no decoders
    _, report = _load(f"{family(name)}ForSequenceClassification", tmp_path, num_labels=5, **options)
    assert all(key.startswith("qa_") for key in report["unexpected_keys"])
    assert report["unexpected_keys"]


def test_other_sizes(tmp_path):
    """... are transformers' business, and new where that is wanted."""
    for framework, name in (("TF", "MobileBertForMaskedLM"), ("Flax", "BigBirdModel")):
        folder = tmp_path / name
        _saved(framework, name, folder)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            _load(name, folder, vocab_size=120)
        model, report = _load(name, folder, vocab_size=120, ignore_mismatched_sizes=True)
        words = model.get_input_embeddings().weight
        assert words.shape[0] == 120
        assert torch.isfinite(words).all()
        assert any("word_embeddings" in key for key, *_ in report["mismatched_keys"])


def test_names_that_the_caller_maps(tmp_path):
    """transformers reports them as they are after that."""
    stock, weights = _saved("Flax", "BigBirdModel", tmp_path)
    mapping = {"^trunk": "encoder"}
    moved = {re.sub("^encoder", "trunk", path): values for path, values in weights.items()}
    files.write("Flax", tmp_path, moved)
    model, report = _load("BigBirdModel", tmp_path, key_mapping=mapping)
    assert not any(report.values()), report
    torch.testing.assert_close(model.state_dict(), stock.state_dict(), rtol=0, atol=0)
    files.write("Flax", tmp_path, moved | {"trunk/surprise": np.ones(3, np.float32)})
    assert re.search(
        r"checkpoint's (trunk/|encoder\.)surprise", _refused("BigBirdModel", tmp_path, key_mapping=mapping)
    )


# ---- shards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("framework", "name"), BACKBONES)
def test_shards_that_are_missing(framework, name, tmp_path):
    _saved(framework, name, tmp_path, sharded=True)
    stem, suffix = files.FILES[framework].split(".")
    lost = tmp_path / f"{stem}-00002-of-00003.{suffix}"
    index = tmp_path / f"{stem}.{suffix}.index.json"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(OSError, match=lost.name):
        _load(name, tmp_path)
    lost.write_bytes(content)
    _load(name, tmp_path)
    index.write_text(index.read_text().replace(lost.name, f"{stem}-00001-of-00003.{suffix}"))  # not in the index
    assert "the checkpoint lacks the backbone's " in _refused(name, tmp_path)
