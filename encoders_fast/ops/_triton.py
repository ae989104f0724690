"""What the backends called `triton` share on the host: their refusals, and the one place that launches a kernel.

Nothing here imports triton, which takes a second: an op does so with its kernels, at the first call that runs on them.
With TRITON_INTERPRET=1 in the environment from the start, kernels are interpreted and take tensors on the CPU: slowly,
for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch

from .._dispatch import Key

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

MOST_WARPS = 32 if torch.version.hip is None else 16
"""1024 threads; AMD's warps have 64 of them."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(key: Key) -> str | None:
    """The refusals that all of these backends have."""
    if key.device != ("cpu" if INTERPRETED else "cuda"):
        return f"runs on {'the CPU, interpreted' if INTERPRETED else 'a GPU'}; the input is on {key.device}"
    others = [dtype for dtype in key.dtypes if dtype not in _DTYPES]
    if others:
        return f"takes float32, bfloat16 and float16; the input is {others[0]}"
    if not _installed():
        return "triton is not installed: pip install triton"
    # AMD's numbers are other ones, and all that PyTorch supports will do.
    if key.capability is not None and key.capability < (8, 0) and torch.version.hip is None:
        major, minor = key.capability
        return f"needs a GPU of the Ampere generation (sm_80) or later; this one is sm_{major}{minor}"
    return None


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side, at the least."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def precision(dtype: torch.dtype) -> str:
    """How tensor cores multiply factors of `dtype`: float32 as three TF32 products, which are as good as its own, and
    as one only where torch is told that this will do. Few of AMD's have TF32."""
    if dtype != torch.float32:
        return "ieee"  # means nothing to half types
    if torch.version.hip is not None:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def launch(device: torch.device, kernel: Any, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
    """Starts `kernel` on the current stream of `device`. `constants` are its constexprs and triton's options."""
    options = constants | {"enable_fp_fusion": True}  # triton's default depends on its version
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[tuple(grid)](*arguments, **options)
    else:
        kernel[tuple(grid)](*arguments, **options)
