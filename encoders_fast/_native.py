"""Loads the compiled libraries and remembers, in a sentence, why one is missing.

`missing` and `cuda_missing` are None where the library of the CPU or of CUDA is loaded. Importing this never fails:
without the libraries everything runs on plain PyTorch, and `python -m encoders_fast info` repeats the sentences.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any, cast

import torch

OLDEST_TORCH = (2, 11)

_folder = Path(__file__).parent


def _reason_not_built(library: str) -> str:
    """What setup.py wrote down when it did not build the library."""
    try:
        report = json.loads((_folder / "_build_report.json").read_text(encoding="utf-8"))
        reason = report[library]
    except (OSError, ValueError, KeyError, TypeError):
        reason = None
    return f"it was not compiled: {reason or 'setup.py has left no reason'}"


def _load(library: str) -> str | None:
    """Loads one library; None, or the sentence why not."""
    if os.environ.get("ENCODERS_FAST_NATIVE") == "0":
        return "it is switched off by ENCODERS_FAST_NATIVE=0"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return f"it needs torch {'.'.join(map(str, OLDEST_TORCH))} or later, and this is torch {torch.__version__}"
    path = _folder / f"{library}.so"
    if not path.exists():
        return _reason_not_built(library)
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return f"it could not be loaded: {error.__cause__ or error}"
    return None


def _load_cuda() -> str | None:
    if missing is not None:
        return f"it needs the native CPU library, which is missing: {missing}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    return _load("_cuda")


def _load_cpu() -> str | None:
    reason = _load("_cpu")
    if reason is None:
        try:
            torch.ops.encoders_fast_native.build_info()
        except RuntimeError as error:  # ENCODERS_FAST_ISA is wrong; the sentence comes behind the place in the source
            reason = str(error).splitlines()[0].rpartition("cpp:")[2].partition(", ")[2] or str(error)
            warnings.warn(f"the native kernels are not used: {reason}", RuntimeWarning, stacklevel=2)
    return reason


missing: str | None = _load_cpu()
cuda_missing: str | None = _load_cuda()


def build_info() -> dict[str, dict[str, Any] | None]:
    """How each library was built and what it uses on this machine; None for a library that is missing."""
    native = torch.ops.encoders_fast_native
    return {
        "cpu": None if missing else json.loads(native.build_info()),
        "cuda": None if cuda_missing else json.loads(native.cuda_build_info()),
    }


def instruction_set() -> str | None:
    """The instruction set that the CPU kernels use ("generic", "avx2", ...); None where they are missing."""
    info = build_info()["cpu"]
    return None if info is None else cast(str, info["instruction_set"])
