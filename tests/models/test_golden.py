"""What transformers 5 can no longer compute, against numbers that transformers 4.57 left: see tests/golden/."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import encoders_fast.models as ours
from tests.closeness import relative_error
from tests.golden.cases import CASES, ERRORS, NUMBERS
from tests.golden.uses import inputs

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
    results = case.compute(ours, dtype, **case.ours, **options, keep_padding=True)
    assert set(results) == set(FLOAT32_ERRORS[name])
    for key, value in results.items():
        exact, theirs = GOLDEN[f"{name}/{key}"], FLOAT32_ERRORS[name][key]
        assert value.shape == exact.shape, key
        assert value.dtype == dtype, key
        # The same formula in float64 differs in its last bits. In float32 plain PyTorch may hit a few numbers by luck:
        # for those the floor is what a few layers make of rounding.
        bound = 1e-12 if dtype == torch.float64 else 2 * theirs + 16 * torch.finfo(dtype).eps
        assert relative_error(value, exact) <= bound, key


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.options.get("is_decoder")])
def test_numbers_of_real_tokens(name, attention):
    """With padding left out, as it is by default: the gradients are others, as those of the golden numbers are of an
    output that padding is a part of."""
    case = CASES[name]
    for key, value in case.compute(ours, torch.float64, **case.ours, attn_implementation=attention).items():
        exact = GOLDEN[f"{name}/{key}"]
        assert value.shape == exact.shape, key
        if "gradient" in key:
            continue
        if key.endswith(("last_hidden_state", "prediction_logits")):
            real = inputs(SimpleNamespace(vocab_size=99, pad_token_id=0, type_vocab_size=2), *value.shape)
            shown = real["attention_mask"].bool()
            assert not shown.all(), key
            value, exact = value[shown], exact[shown]
        assert relative_error(value, exact) <= 1e-12, key
