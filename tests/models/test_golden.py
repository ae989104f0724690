"""What transformers 5 can no longer compute, against numbers that transformers 4.57 left: see tests/golden/."""

import json

import pytest
import torch
from safetensors.torch import load_file

import encoders_fast.models as ours
from tests.closeness import relative_error
from tests.golden.cases import CASES, ERRORS, NUMBERS

GOLDEN = load_file(NUMBERS)
FLOAT32_ERRORS = json.loads(ERRORS.read_text())["float32_errors"]


def test_every_case_has_its_numbers():
    assert list(FLOAT32_ERRORS) == list(CASES)
    assert {f"{case}/{key}" for case, errors in FLOAT32_ERRORS.items() for key in errors} == set(GOLDEN)
    for key, value in GOLDEN.items():
        assert value.dtype == torch.float64
        assert value.isfinite().all(), key
        assert value.norm() > 0, key


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float64, {"attn_implementation": "eager"}), (torch.float32, {})],
    ids=["float64, eager attention", "float32, default attention"],
)
# MobileBERT whose words are as wide as its stream has a parameter without elements, which torch remarks upon.
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize("name", CASES)
def test_numbers(name, dtype, options):
    case = CASES[name]
    results = case.compute(ours, dtype, **case.ours, **options)
    assert set(results) == set(FLOAT32_ERRORS[name])
    for key, value in results.items():
        exact, theirs = GOLDEN[f"{name}/{key}"], FLOAT32_ERRORS[name][key]
        assert value.shape == exact.shape, key
        assert value.dtype == dtype, key
        # The same formula in float64 differs in its last bits. In float32 plain PyTorch may hit a few numbers by luck:
        # for those the floor is what a few layers make of rounding.
        bound = 1e-12 if dtype == torch.float64 else 2 * theirs + 16 * torch.finfo(dtype).eps
        assert relative_error(value, exact) <= bound, key
