"""The compiled libraries: what they say about themselves, and the sentences where they are missing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from encoders_fast import _native

needs_cpu_library = pytest.mark.skipif(_native.missing is not None, reason=f"no native library: {_native.missing}")
CUDA_LIBRARY = Path(_native.__file__).with_name("_cuda.so")


def in_a_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The libraries are loaded, and the instruction set chosen, once per process."""
    return subprocess.run(
        [sys.executable, "-c", f"from encoders_fast import _native\n{code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_cpu_library
def test_build_info_of_the_cpu_library() -> None:
    info = _native.build_info()["cpu"]
    assert info is not None
    assert info["torch_target"] == "2.11"
    assert info["compiler"]
    assert info["instruction_sets_compiled"][0] == "generic"
    assert set(info["instruction_sets_of_this_cpu"]) <= set(info["instruction_sets_compiled"])


@needs_cpu_library
@pytest.mark.parametrize("wanted", ["generic", "avx2", "avx512", "avx512_bf16", "", "mmx"])
def test_instruction_set_can_be_chosen(wanted: str) -> None:
    info = _native.build_info()["cpu"]
    assert info is not None
    available = info["instruction_sets_of_this_cpu"]
    process = in_a_new_process("print(_native.instruction_set()); print(_native.missing)", ENCODERS_FAST_ISA=wanted)
    chosen, why = process.stdout.splitlines()
    if wanted in ("", *available):
        assert (chosen, why) == (wanted or available[-1], "None"), process.stderr
        return
    # Import goes on without the kernels, and says so: they would not be those that were asked for.
    assert chosen == "None"
    assert why.startswith(f"ENCODERS_FAST_ISA={wanted}")
    assert ", ".join(available) in why
    assert ("unknown" in why) == (wanted not in info["instruction_sets_compiled"])
    assert f"RuntimeWarning: the native kernels are not used: {why}" in process.stderr


def test_switched_off() -> None:
    code = "print(_native.missing); print(_native.cuda_missing); print(_native.build_info(), _native.instruction_set())"
    process = in_a_new_process(code, ENCODERS_FAST_NATIVE="0")
    why, why_no_cuda, facts = process.stdout.splitlines()
    assert why == "it is switched off by ENCODERS_FAST_NATIVE=0"
    assert why_no_cuda.endswith(why)
    assert facts == "{'cpu': None, 'cuda': None} None"


@pytest.fixture
def package_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the one that the libraries are loaded from."""
    monkeypatch.delenv("ENCODERS_FAST_NATIVE", raising=False)
    monkeypatch.setattr(_native, "_folder", tmp_path)
    return tmp_path


def test_reason_recorded_by_the_build(package_folder: Path) -> None:
    report = {"_cpu": "no C++ compiler was found (c++)", "_cuda": None}
    (package_folder / "_build_report.json").write_text(json.dumps(report))
    assert _native._load("_cpu") == "it was not compiled: no C++ compiler was found (c++)"


@pytest.mark.parametrize("report", [None, "not JSON", "[]", "{}", '{"_cpu": null}'])
def test_no_reason_recorded(package_folder: Path, report: str | None) -> None:
    if report is not None:
        (package_folder / "_build_report.json").write_text(report)
    assert _native._load("_cpu") == "it was not compiled: setup.py has left no reason"


def test_broken_library(package_folder: Path) -> None:
    (package_folder / "_cpu.so").write_text("not a library")
    reason = _native._load("_cpu")
    assert reason is not None
    assert reason.startswith("it could not be loaded: ")
    assert str(package_folder / "_cpu.so") in reason


def test_torch_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "OLDEST_TORCH", (99, 1))
    monkeypatch.delenv("ENCODERS_FAST_NATIVE", raising=False)
    assert _native._load("_cpu") == f"it needs torch 99.1 or later, and this is torch {torch.__version__}"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_library_is_not_loaded_into_a_torch_without_cuda() -> None:
    if _native.missing is None:
        assert _native.cuda_missing == f"torch {torch.__version__} has no CUDA"
    assert _native.build_info()["cuda"] is None


def test_cuda_library_was_compiled_and_linked() -> None:
    if not CUDA_LIBRARY.exists() and not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()):
        pytest.skip("nvcc was not found, so the CUDA library could not be compiled")
    assert CUDA_LIBRARY.exists(), "nvcc is here, but the package was built without EF_CUDA=1"
    symbols = CUDA_LIBRARY.read_bytes()
    for needed in (b"libtorch_cuda.so", b"libcudart.so", b"cuda_build_info"):
        assert needed in symbols


@pytest.mark.gpu
def test_build_info_of_the_cuda_library() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert _native.cuda_missing is None
    info = _native.build_info()["cuda"]
    assert info is not None
    assert info["nvcc"]
    assert info["target_in_use"].startswith("sm_")
