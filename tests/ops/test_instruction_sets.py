"""The tests of native ops again on every lesser instruction set of this CPU, each in a process of its own, as the
choice is made once per process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from encoders_fast import _native

HERE = Path(__file__).parent
FILES = [
    "test_fourier_mixing.py",
    "test_residual_layer_norm.py",
    "test_residual_layer_norm_cpu.py",
    "test_block_sparse_attention.py",
    "test_block_sparse_attention_cpu.py",
    "test_packed_linear.py",
    "test_packed_linear_gradients.py",
    "test_bottleneck.py",
    "test_bottleneck_cpu.py",
]
info = _native.build_info()["cpu"]
LESSER = [isa for isa in info["instruction_sets_of_this_cpu"] if isa != info["instruction_set"]] if info else []


@pytest.mark.slow
@pytest.mark.skipif(info is None, reason=f"no native library: {_native.missing}")
@pytest.mark.skipif("ENCODERS_FAST_ISA" in os.environ, reason="already one of these processes")
@pytest.mark.parametrize("isa", LESSER)
def test_on(isa):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES, "-k", "not reference"]
    result = subprocess.run(
        command, cwd=HERE, env={**os.environ, "ENCODERS_FAST_ISA": isa}, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
