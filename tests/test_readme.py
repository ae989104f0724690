"""What README.md shows runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from encoders_fast import _dispatch
from encoders_fast.ops.fourier_mixing import reference

README = Path(__file__).parents[1] / "README.md"
if not README.is_file():
    pytest.skip("README.md is not part of this installation", allow_module_level=True)
MODELS, LIVE, TOKENIZERS, OP, CHECKPOINTS, VARIANT = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def run(program):
    names = {}
    exec(compile(program, str(README), "exec"), names)
    return names


def test_five_lines(tmp_path):
    transformers = pytest.importorskip("transformers")
    from encoders_fast._compare import demo, text

    tokenizer = demo.train_tokenizer(text.read(None)[:5000])
    tokenizer.save_pretrained(tmp_path)
    config = transformers.FNetConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, intermediate_size=64, max_position_embeddings=64
    )
    transformers.FNetForMaskedLM(config).save_pretrained(tmp_path)
    assert "google/fnet-base" in MODELS
    names = run(MODELS.replace("google/fnet-base", str(tmp_path)))
    assert names["logits"].shape[2] == len(tokenizer)


def test_a_live_model(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "is", "in", "."]
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    config = transformers.MobileBertConfig(vocab_size=len(words), num_hidden_layers=2, max_position_embeddings=16)
    transformers.MobileBertForMaskedLM(config).save_pretrained(tmp_path)
    assert "google/mobilebert-uncased" in LIVE
    names = run(LIVE.replace("google/mobilebert-uncased", str(tmp_path)))
    printed = capsys.readouterr().out
    assert "mobilebert.encoder.layer.* (2): bottleneck_input and bottleneck_ffn" in printed
    assert re.search(r"logits: \d\.\de-0\d, worst channel", printed)
    assert type(names["model"].mobilebert.encoder.layer[0]).__module__.startswith("transformers.")


def test_tokenizers(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    sentencepiece = pytest.importorskip("sentencepiece")
    monkeypatch.chdir(tmp_path)
    lines = [" ".join(README.read_text().split()[i : i + 20]) for i in range(0, 2000, 20)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix="spiece", vocab_size=200, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    )  # fmt: skip
    names = run(TOKENIZERS)
    text = "the same numbers"
    assert names["tokenizer"].decode(names["tokenizer"](text)["input_ids"], skip_special_tokens=True) == text
    assert len({tuple(names["FNetTokenizer"]("spiece.model", sp_model_kwargs=names["sampling"])(text)["input_ids"])
                for _ in range(20)}) > 1  # fmt: skip


def test_the_op_alone():
    names = run(OP)
    exact = reference.fourier_mixing_layer_norm(
        names["x"].double(), names["weight"].double(), names["bias"].double(), 1e-12, "backward", False
    )[0]
    torch.testing.assert_close(names["y"].double(), exact, rtol=1e-4, atol=1e-5)


def test_checkpoints_of_other_frameworks(tmp_path, monkeypatch):
    for package in ("transformers", "h5py", "msgpack"):
        pytest.importorskip(package)
    import encoders_fast.models as ours
    from tests.models import model_cases, other_frameworks_files

    monkeypatch.chdir(tmp_path)
    writers = {
        "MobileBertForMaskedLM": ("tf_model.h5", other_frameworks_files.keras_weights, other_frameworks_files.write_h5),
        "BigBirdForMaskedLM": (
            "flax_model.msgpack",
            other_frameworks_files.flax_weights,
            other_frameworks_files.write_msgpack,
        ),
    }
    for name, (file, weights, write) in writers.items():
        model = getattr(ours, name)(model_cases.config(name))
        folder = tmp_path / f"folder-with-{file}"
        model.config.save_pretrained(folder)
        write(folder / file, weights(model))
    names = run(CHECKPOINTS)
    assert torch.equal(names["model"].cls.predictions.bias, model.cls.predictions.bias)
    assert {path.name for path in (tmp_path / "mobilebert").iterdir()} >= {"model.safetensors", "config.json"}


@pytest.mark.parametrize("shape", [(2, 6, 8), (1, 7, 9), (1, 1, 1)])
def test_the_variant(shape):
    names = run(VARIANT)
    try:
        assert _dispatch.explain("fourier_mixing", torch.zeros(1, 2, 3)).chosen == "mirrored"
        x = torch.randn(shape)
        exact = reference.fourier_mixing(x.double(), "backward")
        torch.testing.assert_close(names["fourier_mixing"](x).double(), exact, rtol=1e-4, atol=1e-5)
    finally:
        names["remove"]()
