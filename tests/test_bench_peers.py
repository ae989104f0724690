"""What the benches of models compare with: it gives transformers' numbers in the dtype asked for, or says why not."""

import sys
from pathlib import Path

import pytest
import torch

if not (Path(__file__).parents[1] / "bench").is_dir():
    pytest.skip("bench/ is not part of this installation", allow_module_level=True)

import tests.harness  # isort: split  # noqa: F401  (finds bench)
from bench import peers
from tests.closeness import relative_error

# Runtimes warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def work():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=99, **shape)).eval()
    ids = torch.randint(99, (2, 16))
    with torch.no_grad():
        exact = model.double()(ids).last_hidden_state
        return model.float(), ids, exact


RUNTIMES = {
    "ONNX Runtime": ("onnxruntime", peers.onnx_runtime, 0.0, 2e-6),
    "OpenVINO": ("openvino", lambda model, ids: peers.openvino(model, ids, torch.float32), 0.0, 2e-6),
    # Not less than ten times float32's, which would be float32.
    "OpenVINO in bfloat16": ("openvino", lambda model, ids: peers.openvino(model, ids, torch.bfloat16), 2e-5, 2**-8),
}


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_computes_in_its_dtype(work, name):
    module, runtime, least, most = RUNTIMES[name]
    pytest.importorskip(module, reason=f"{module} is not installed: `make peers`")
    model, ids, exact = work
    peer = runtime(model, ids)
    if peer.absent and "was asked for" in peer.absent:
        pytest.skip(peer.absent)
    assert peer.absent is None
    assert least <= relative_error(peer.call(), exact) < most


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_that_is_not_installed(work, name, monkeypatch):
    module, runtime, _, _ = RUNTIMES[name]
    monkeypatch.setitem(sys.modules, module, None)
    peers._converted.cache_clear()
    absent = runtime(*work[:2]).absent
    assert absent == f"{name.split(' in ')[0]} is not installed ({module} is missing): `make peers` installs it"


def test_threads_are_torchs(work, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    seen = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, options, **more):
            seen.append(options.intra_op_num_threads)
            super().__init__(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert peers.onnx_runtime(*work[:2]).absent is None
    assert seen == [torch.get_num_threads()]


@pytest.mark.parametrize(("error", "words"), [(ValueError("no\nmore lines"), "no"), (KeyError(), "KeyError")])
def test_what_fails_says_why_in_a_line(error, words):
    def prepare():
        raise error

    peer = peers.tried("this", prepare)
    assert peer.absent == f"this failed: {words}"
    with pytest.raises(RuntimeError, match=f"this failed: {words}"):
        peer.call()


def test_torch_compile(work, monkeypatch):
    model, ids, exact = work
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    peer = peers.torch_compile(model, ids)
    assert peer.absent is None
    assert relative_error(peer.call(), exact) < 2e-6
