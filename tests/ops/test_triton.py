"""Triton kernels where there is no GPU: interpreted, compiled offline, refused, and what runs around them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from encoders_fast import _dispatch
from encoders_fast._dispatch import Key
from encoders_fast.ops import _triton
from tests.ops import triton_offline
from tests.ops.triton_cases import CASES

HERE = Path(__file__).parent
# The tests that loop over the backends of an op, which the interpreter goes through too: file -> pytest's -k. Left out
# are sizes that would take it long and are no other case to a kernel.
FILES = {
    "test_residual_layer_norm.py": "triton",
    "test_fourier_mixing.py": "triton and not 4096 and not 509",
    "test_fourier_mixing_triton.py": "triton",
    # At the published widths, which take seconds, each kernel once, and at others everything.
    "test_bottleneck.py": "(triton and not 512) or (triton and 512 and ("
    "(float32 and shared and no_norm) or (float32 and test_ffn and layer_norm and not no_norm and 0.3)"
    " or (float16 and not bfloat16 and 33 and no_norm and not 0.3)))"
    " or beside or only or strides or independent",
    "test_block_sparse_attention.py": "triton and ("
    "test_patterns and padded and not (evaluation or training or random)"
    " or narrow or more and whole or bfloat16-40 or torch.float16-256 or float32-80 or in_float32 or head_mask"
    " or strides)",
}
OPS = {op: row for op, rows in _dispatch.tables().items() for row in rows if row.name == "triton"}

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="already the process that interprets"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "selected"), FILES.items(), ids=FILES)
def test_interpreted(file, selected):
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip(f"the interpreter of triton {triton.__version__} cannot loop to a number known at run time only")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", selected]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled(case, capsys):
    """For both generations of GPUs, with the registers, spills and shared memory that are committed."""
    import triton

    known = json.loads(triton_offline.RESOURCES.read_text())
    if triton.__version__ not in known:
        pytest.skip(f"triton_resources.json has {', '.join(known)}; triton is {triton.__version__}")
    found = triton_offline.measured({case: CASES[case]})
    with capsys.disabled():
        for architecture, kernels in found.items():
            for name, numbers in kernels.items():
                print(f"{architecture} {name}: {numbers}")
    # What the smallest GPUs of these generations have for one program, sm_86 and its successors.
    assert all(numbers["shared"] <= 99 * 1024 for numbers in found["sm_80"].values())
    for architecture, kernels in found.items():
        expected = known[triton.__version__][architecture]
        assert kernels == {name: expected.get(name) for name in kernels}


def test_committed_resources_are_those_of_the_cases():
    for architectures in json.loads(triton_offline.RESOURCES.read_text()).values():
        for kernels in architectures.values():
            assert {case for case in CASES if not any(name.startswith(f"{case} ") for name in kernels)} == set()
            assert [name for name in kernels if name.rpartition(" ")[0] not in CASES] == []


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))


ALLOCATIONS_AND_VIEWS = {
    *("aten.empty", "aten.new_empty", "aten.empty_like", "aten.new_empty_strided", "aten.empty_strided"),
    *("aten.view", "aten._unsafe_view", "aten.detach", "aten.slice", "aten.select", "aten.as_strided", "aten.expand"),
    *("aten.transpose", "aten.permute", "aten.unsqueeze", "aten.squeeze", "aten.t", "aten.alias", "aten.unbind"),
}


@pytest.mark.parametrize("case", CASES)
def test_no_operator_of_torch_runs_beside_the_kernels(case):
    CASES[case]()  # plans that are made once
    with Operators() as operators:
        launches = CASES[case]()
    assert launches
    # The case makes its own inputs.
    assert operators.names <= ALLOCATIONS_AND_VIEWS | {"aten.lift_fresh"}


GPU = Key("cuda", (9, 0), (torch.float32, torch.float32), (64,) * 5)


@pytest.mark.parametrize("op", OPS)
def test_refusals(op):
    why_not = OPS[op].why_not
    assert why_not(GPU) is None
    assert why_not(GPU._replace(capability=(8, 0))) is None
    assert why_not(GPU._replace(device="cpu")) == "runs on a GPU; the input is on cpu"
    assert why_not(GPU._replace(capability=(7, 5))) == (
        "needs a GPU of the Ampere generation (sm_80) or later; this one is sm_75"
    )
    assert why_not(GPU._replace(dtypes=(torch.float64,) * 2)) == (
        "takes float32, bfloat16 and float16; the input is torch.float64"
    )


def test_refusals_of_widths():
    for op in ("residual_layer_norm", "fourier_mixing_layer_norm"):
        assert OPS[op].why_not(GPU._replace(widths=(16384,))) is None
        assert OPS[op].why_not(GPU._replace(widths=(16385,))) == "takes rows of up to 16384 elements; these have 16385"
    assert OPS["fourier_mixing"].why_not(GPU._replace(widths=(16385,))) is None
    for op in ("bottleneck_input", "bottleneck_ffn"):
        for dtypes, widest in (((torch.float32,) * 3, 128), ((torch.float32, torch.bfloat16, torch.float32), 256)):
            key = GPU._replace(dtypes=dtypes)
            assert OPS[op].why_not(key._replace(widths=(512, widest, 512, 512, 4))) is None
            assert OPS[op].why_not(key._replace(widths=(512, widest + 1, 512, 512, 4))) == (
                f"keeps the narrow stream in registers, up to {widest} elements of a row; it has {widest + 1}"
            )
    assert OPS["bottleneck_ffn"].why_not(GPU._replace(widths=(512, 128, 128, 0, 4))) == (
        "takes feed-forward blocks of one width; these differ"
    )
    assert OPS["block_sparse_attention"].why_not(GPU._replace(widths=(256, 1))) is None
    assert OPS["block_sparse_attention"].why_not(GPU._replace(widths=(257, 64))) == (
        "takes heads of a width of up to 256; these have 257"
    )


@pytest.mark.parametrize(
    ("dtype", "setting", "expected"),
    [
        (torch.float32, "ieee", "tf32x3"),
        (torch.float32, "tf32", "tf32"),
        (torch.bfloat16, "tf32", "ieee"),
    ],
)
def test_precision_of_products_is_what_torch_allows(dtype, setting, expected):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = setting == "tf32"
        assert _triton.precision(dtype) == expected
    finally:
        matmul.allow_tf32 = before
