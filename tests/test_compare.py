"""`python -m encoders_fast compare`: the main job, and a sentence for everything that can go wrong with it."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="compare needs the extra [models]")

from encoders_fast import Backend, _dispatch, register_backend  # noqa: E402
from encoders_fast.__main__ import main  # noqa: E402
from encoders_fast._compare import command, demo, memory, text  # noqa: E402
from encoders_fast._compare.checkpoint import describe  # noqa: E402
from encoders_fast.ops.fourier_mixing import reference  # noqa: E402

TINY = {
    "vocab_size": 2000,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
HEADS = ["ForMaskedLM", "ForMultipleChoice", "ForNextSentencePrediction", "ForPreTraining", "ForQuestionAnswering"]
HEADS += ["ForSequenceClassification", "ForTokenClassification"]
SMALL = ["--batch", "2", "--length", "16", "--repeats", "2"]


@pytest.fixture(scope="module")
def tokenizer():
    return demo.train_tokenizer(text.read(None)[:20_000])


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """Saves a tiny FNet of one class, by transformers itself, with a tokenizer; returns the folder."""

    def save(name="FNetForMaskedLM", **changes):
        folder = tmp_path_factory.mktemp("checkpoint")
        tokenizer.save_pretrained(folder)
        torch.manual_seed(1)
        model = getattr(transformers, name)(transformers.FNetConfig(**TINY | {"vocab_size": len(tokenizer)} | changes))
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def checkpoint(saved):
    return saved()


@pytest.fixture
def memory_unmeasured(monkeypatch):
    """A process for each model takes seconds; one test below measures really."""
    monkeypatch.setattr(memory, "on_cpu", lambda *_: 1_000_000)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refused(capsys, arguments):
    """The one sentence on stderr, past the progress lines."""
    assert main(["compare", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("encoders_fast: ")
    return lines[0]


# ---- what it is for --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("memory_unmeasured")
def test_prints_a_table_and_saves_it(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["compare", str(checkpoint), *SMALL, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("median", "tokens/s", "peak memory", "transformers " + transformers.__version__, "they agree"):
        assert words in printed
    result = json.loads(out.read_text())
    assert len(result["ours"]["seconds"]) == len(result["transformers"]["seconds"]) == 2
    assert result["ratio"] == pytest.approx(result["transformers"]["median"] / result["ours"]["median"])
    assert result["ours"]["tokens_per_second"] == pytest.approx(2 * 16 / result["ours"]["median"])
    assert result["differences"]["logits"]["l2"] < 1e-5
    # One call for each layer, on whatever backend comes first here.
    (backend,) = result["backends"]["fourier_mixing_layer_norm"].items()
    assert backend == (_dispatch.explain("fourier_mixing_layer_norm", *op_arguments()).chosen, 2)


def op_arguments():
    return torch.zeros(1, 2, 32), torch.zeros(32), torch.zeros(32)


@pytest.mark.usefixtures("memory_unmeasured")
@pytest.mark.parametrize("head", ["Model", *HEADS])
def test_every_head(saved, head, capsys):
    assert main(["compare", str(saved("FNet" + head)), *SMALL]) == 0
    assert f"FNet{head}, " in capsys.readouterr().out


SHARED = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 64}
ATTENDING = SHARED | {"num_attention_heads": 4}
TINY_DEMOS = {
    "FNetForMaskedLM": SHARED,
    "BigBirdForMaskedLM": ATTENDING,
    "MobileBertForMaskedLM": ATTENDING | {"embedding_size": 16, "intra_bottleneck_size": 16},
    "RobertaPreLayerNormForMaskedLM": ATTENDING,
    "XLMRobertaXLForMaskedLM": ATTENDING,
}


@pytest.mark.usefixtures("memory_unmeasured")
def test_without_a_checkpoint_it_makes_one_of_each_family(monkeypatch, tmp_path, capsys):
    demos = [dataclasses.replace(each, config=TINY_DEMOS.pop(each.class_name)) for each in demo.DEMOS]
    assert not TINY_DEMOS
    monkeypatch.setattr(demo, "DEMOS", demos)
    monkeypatch.setattr(demo, "VOCABULARY", 9000)
    out = tmp_path / "out.json"
    assert main(["compare", *SMALL, "--json", str(out)]) == 0
    printed = capsys.readouterr()
    assert "pydoc_data.topics" in printed.out
    assert "[1/36] training a tokenizer" in printed.err
    assert "[36/36] peak memory" in printed.err
    results = json.loads(out.read_text())["demos"]
    assert [result["class"] for result in results] == [each.class_name for each in demos]
    for result in results:
        (line,) = [line for line in printed.out.splitlines() if line.startswith(result["class"] + " ")]
        assert line.endswith(f"{max(found['l2'] for found in result['differences'].values()):.1e}")
        assert f"{result['ratio']:.2f}x" in line
        assert (result["batch"], result["length"]) == (2, 16)
        assert result["backends"]


@pytest.mark.usefixtures("memory_unmeasured")
def test_a_wrong_kernel_is_found(checkpoint, capsys):
    def slightly_wrong(*arguments):
        y, *rest = reference.fourier_mixing_layer_norm(*arguments)
        return y + 0.01 * arguments[0], *rest

    backend = Backend("wrong", lambda key: None, slightly_wrong, reference.fourier_mixing_layer_norm_backward)
    remove = register_backend("fourier_mixing_layer_norm", backend)
    try:
        assert main(["compare", str(checkpoint), *SMALL]) == 1
    finally:
        remove()
    printed = capsys.readouterr().out
    assert "THEY DIFFER" in printed
    assert "on wrong x 2" in printed


def test_weights_are_held_once(checkpoint):
    loaded = command.load_both(command.Options(), describe(str(checkpoint)))
    mine, theirs = (dict(model.named_parameters()) for model in (loaded.ours, loaded.stock))
    assert mine.keys() == theirs.keys()
    assert all(mine[name].data_ptr() == theirs[name].data_ptr() for name in mine)
    assert type(loaded.ours) is not type(loaded.stock)
    # They are the checkpoint's, tied and untied alike.
    right = transformers.FNetForMaskedLM.from_pretrained(checkpoint)
    assert all(torch.equal(parameter, mine[name]) for name, parameter in right.named_parameters())
    decoder = loaded.stock.cls.predictions.decoder.weight
    assert decoder.data_ptr() == loaded.stock.fnet.embeddings.word_embeddings.weight.data_ptr()


@pytest.mark.usefixtures("memory_unmeasured")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_against_float32(checkpoint, dtype, capsys):
    assert main(["compare", str(checkpoint), *SMALL, "--dtype", dtype, "--against-float32"]) == 0
    printed = capsys.readouterr().out
    assert f"{dtype} and in float32" in printed


@pytest.mark.usefixtures("memory_unmeasured")
def test_weights_that_the_checkpoint_lacks_are_named(saved, capsys):
    folder = saved("FNetModel")
    change_config(folder, architectures=["FNetForTokenClassification"])
    assert main(["compare", str(folder), *SMALL]) == 0
    assert "2 weights are not in the checkpoint" in capsys.readouterr().out


@pytest.mark.usefixtures("memory_unmeasured")
def test_weights_that_the_model_lacks_are_named(saved, capsys):
    folder = saved()
    change_config(folder, num_hidden_layers=1)
    assert main(["compare", str(folder), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "8 weights of the checkpoint are not in the model and were ignored: fnet.encoder.layer.1." in printed


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfNobody expects a mark here.")
    assert text.read(str(tmp_path / "text.txt")) == "Nobody expects a mark here."


@pytest.mark.slow
def test_peak_memory_is_that_of_one_forward(checkpoint):
    described = describe(str(checkpoint))
    ids = torch.randint(0, described.config.vocab_size, (64, 64))
    peak = memory.on_cpu(described, "encoders_fast", "float32", ids)
    logits = 64 * 64 * described.config.vocab_size * 4
    # Above the logits come activations, which are small here, and what libraries set up at their first call.
    assert logits <= peak <= logits + 200e6
    # A library that fails there does not end the comparison.
    assert "memory failed: RuntimeError" in memory.on_cpu(described, "transformers", "bfloat16", ids)


# ---- what it refuses -------------------------------------------------------------------------------------------------


def test_no_such_folder(capsys):
    assert "there is no folder ./nowhere" in refused(capsys, ["./nowhere"])


def test_a_hub_id_without_a_network(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot read the configuration of nobody/nothing" in refused(capsys, ["nobody/nothing"])


def test_a_file(checkpoint, capsys):
    assert "is a file" in refused(capsys, [checkpoint / "config.json"])


def test_a_folder_without_config(tmp_path, capsys):
    assert "has no config.json" in refused(capsys, [tmp_path])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "cannot read the configuration"),
        ('{"model_type": "bert", "architectures": ["BertModel"]}', "is of type 'bert' (BertModel)"),
        ("{}", "is of type None (no class)"),
        (
            '{"model_type": "fnet", "architectures": ["FNetForAnything"]}',
            "FNetForAnything, which is no model that this library has; it has FNetForMaskedLM, ",
        ),
        *(
            (f'{{"model_type": "fnet", "architectures": ["{name}"]}}', f"holds a {name}, which is no model")
            for name in ("FNetForPreTrainingOutput", "FNetConfig", "FNetPreTrainedModel")
        ),
        ("[1]", "config.json is not a configuration: it holds no JSON object"),
        ('{"model_type": "fnet", "architectures": [3]}', "has architectures [3], which are not a list of classes"),
        ('{"model_type": "fnet", "architectures": "FNetModel"}', "has architectures 'FNetModel', which are not a list"),
        ('{"model_type": "bert", "architectures": {"a": 1}}', "has architectures {'a': 1}, which are not a list"),
        ('{"model_type": "fnet", "id2label": "none"}', "config.json is not a FNetConfig"),
        ('{"model_type": "fnet", "hidden_size": "x"}', "expected int, got str"),
        ('{"model_type": "fnet", "num_hidden_layers": 0}', "has num_hidden_layers 0, less than 1"),
        ('{"model_type": "fnet", "num_hidden_layers": -1}', "has num_hidden_layers -1, less than 1"),
    ],
)
def test_a_config_that_is_not_supported(tmp_path, capsys, config, sentence):
    (tmp_path / "config.json").write_text(config)
    assert sentence in refused(capsys, [tmp_path])


def test_no_weights(saved, capsys):
    folder = saved()
    (folder / "model.safetensors").unlink()
    assert "cannot load the weights" in refused(capsys, [folder])


def test_damaged_weights(saved, capsys):
    folder = saved()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot load the weights" in refused(capsys, [folder])


def test_weights_of_another_shape(saved, capsys):
    folder = saved()
    change_config(folder, intermediate_size=48)
    sentence = refused(capsys, [folder])
    assert "cannot load the weights" in sentence
    assert (
        "6 of them have the wrong shape: fnet.encoder.layer.0.intermediate.dense.bias is [64], not [48], " in sentence
    )


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_is_not_executed(saved, tmp_path, capsys):
    folder = saved()
    (folder / "model.safetensors").unlink()
    torch.save({"fnet.pooler.dense.bias": Touch(tmp_path / "executed")}, folder / "pytorch_model.bin")
    assert "cannot load the weights" in refused(capsys, [folder])
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(tmp_path / "executed")))
    assert "cannot load the weights" in refused(capsys, [folder])
    assert not (tmp_path / "executed").exists()


@pytest.mark.usefixtures("memory_unmeasured")
def test_code_in_a_checkpoint_is_not_executed(saved, tmp_path):
    folder = saved()
    marker = tmp_path / "executed"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    for name, entry in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        content = json.loads((folder / name).read_text())
        target = "evil.Evil" if entry == "AutoConfig" else [None, "evil.Evil"]
        (folder / name).write_text(json.dumps(content | {"auto_map": {entry: target}}))
    assert main(["compare", str(folder), *SMALL]) in (0, 2)
    assert not marker.exists()


def test_no_tokenizer(saved, capsys):
    folder = saved()
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "has the checkpoint a tokenizer's files?" in refused(capsys, [folder])
    (folder / "tokenizer.json").write_text("{")
    assert "cannot load the tokenizer" in refused(capsys, [folder])
    (folder / "tokenizer.json").write_text("{}")
    assert "its files could not be read (KeyError: 'added_tokens')" in refused(capsys, [folder])


def test_a_vocabulary_that_is_too_small(saved, capsys):
    assert "but the model's vocabulary has 10" in refused(capsys, [saved(vocab_size=10)])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read"),
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"abc\xff", "is not UTF-8 text: byte 3 is 0xff"),
        (b"\xef\xbb\xbfabc\xff", "is not UTF-8 text: byte 6 is 0xff"),
    ],
)
def test_texts(checkpoint, tmp_path, capsys, content, sentence):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert sentence in refused(capsys, [checkpoint, "--text", path])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_that_stock_cannot_run(checkpoint, capsys, dtype):
    sentence = refused(capsys, [checkpoint, *SMALL, "--dtype", dtype])
    assert f"transformers cannot run FNetForMaskedLM in {dtype} here" in sentence
    assert "--against-float32" in sentence


def test_a_length_that_stock_cannot_run(saved, capsys):
    sentence = refused(capsys, [saved(use_tpu_fourier_optimizations=True, tpu_short_seq_length=64), *SMALL])
    assert "transformers cannot run FNetForMaskedLM in float32 here: The `tpu_short_seq_length`" in sentence
    assert sentence.endswith(" Use --length 64.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--length", "65"], "--length 65 is more than the 64 positions"),
        (["--length", "2"], "--length 2 leaves no room for text"),
        (["--json", "/nowhere/out.json"], "there is no folder /nowhere"),
        (["--json", "/"], "it is a folder"),
    ],
)
def test_options_that_cannot_be(checkpoint, capsys, arguments, sentence):
    assert sentence in refused(capsys, [checkpoint, *arguments])


@pytest.mark.parametrize("path", ["", "nul\0byte", "long" * 2000])
@pytest.mark.parametrize("name", ["the checkpoint", "--text", "--json"])
def test_what_cannot_be_a_path(capsys, monkeypatch, name, path):
    monkeypatch.setattr(command, "compare", None)
    sentence = refused(capsys, [path] if name == "the checkpoint" else [".", name, path])
    why = f"{name} is not a path: " if path else f"{name} is an empty path"
    assert sentence.startswith(f"encoders_fast: {why}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(checkpoint, capsys):
    assert "there is no GPU: torch" in refused(capsys, [checkpoint, "--device", "cuda"])


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--batch", "two"], ["--length", "-1"], ["--dtype", "int8"]])
def test_bad_arguments(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *arguments])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert arguments[0] in lines[0]
    assert arguments[1] in lines[0]


def test_control_c(monkeypatch, capsys, checkpoint):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.timing, "in_turn", interrupted)
    assert main(["compare", str(checkpoint), *SMALL]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "encoders_fast: interrupted"
