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
MODELS, LIVE, OP, VARIANT = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


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


def test_the_op_alone():
    names = run(OP)
    exact = reference.fourier_mixing_layer_norm(
        names["x"].double(), names["weight"].double(), names["bias"].double(), 1e-12, "backward", False
    )[0]
    torch.testing.assert_close(names["y"].double(), exact, rtol=1e-4, atol=1e-5)


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
