"""`python -m encoders_fast info`: versions, the machine, and a sentence for each backend that is missing."""

import json
import os
import subprocess
import sys

import pytest
import torch

from encoders_fast import Backend, _dispatch, _info, _native, register_backend
from encoders_fast.__main__ import main


def test_prints_every_op_and_backend(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for op, rows in _dispatch.tables().items():
        assert f"\n{op}\n" in printed
        for row in rows:
            assert row.name in printed
    for words in (torch.__version__, "reference      runs on cpu: float32", "threads", "gpu"):
        assert words in printed


def test_json(capsys):
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["versions"]["torch"] == torch.__version__
    assert info["cpu"]["threads"] == torch.get_num_threads()
    assert info["cpu"]["in_use"] == _native.instruction_set()
    names = [row["name"] for row in info["ops"]["fourier_mixing"]]
    assert names == [row.name for row in _dispatch.tables()["fourier_mixing"]]


def test_a_refusal_is_printed_with_its_dtypes(capsys):
    why_not = lambda key: "has no bfloat16" if torch.bfloat16 in key.dtypes else None  # noqa: E731
    remove = register_backend("fourier_mixing", Backend("picky", why_not, lambda *_: None))
    try:
        main(["info"])
    finally:
        remove()
    printed = capsys.readouterr().out
    assert "picky          runs on cpu: float32, float16, float64" in printed
    assert "picky          not on cpu in bfloat16: has no bfloat16" in printed


def test_the_cpu_backend_runs_or_says_why():
    (row,) = [row for row in _info.collect()["ops"]["fourier_mixing"] if row["name"] == "cpu"]
    if _native.missing is None:
        assert row["runs"]["cpu"] == ["float32", "bfloat16", "float16"]
    else:
        assert row["why_not"]["cpu"]["float32"] == _native.missing


def test_a_missing_library_is_its_sentence(monkeypatch, capsys):
    monkeypatch.setattr(_native, "missing", "it is not for this machine")
    monkeypatch.setattr(_native, "build_info", lambda: {"cpu": None, "cuda": None})
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "missing: it is not for this machine" in printed
    assert "in use         none: the native kernels are missing" in printed


@pytest.mark.slow
def test_without_transformers_and_without_kernels():
    """In a new process, where nothing else has imported them."""
    program = "import sys; sys.modules['transformers'] = None\nfrom encoders_fast.__main__ import main\nmain(['info'])"
    environment = os.environ | {"ENCODERS_FAST_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "missing: it is switched off by ENCODERS_FAST_NATIVE=0" in done.stdout
    assert "in use         none" in done.stdout


def test_compare_without_transformers_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["compare", "nobody/nothing"]) == 2
    assert "compare needs transformers; pip install 'encoders_fast[models]'" in capsys.readouterr().err
