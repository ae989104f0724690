"""Makes golden.safetensors and golden.json, with the transformers that could still compute them.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 transformers==4.57.6
    /tmp/golden/bin/python -m tests.golden.make_golden        # from the root of the repository

transformers 5 no longer has relative positions, masked and pruned heads, and tuples of keys and values. Every case of
`cases.py` is computed in float64, which is what is kept, and in float32, for the error that a result in float32 may
have: at most twice transformers' own.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from tests.closeness import relative_error
from tests.golden.cases import CASES, ERRORS, NUMBERS
from tests.golden.uses import Results


def main() -> None:
    if not transformers.__version__.startswith("4.57."):
        sys.exit(f"transformers 4.57 is needed; this is {transformers.__version__}")
    transformers.logging.set_verbosity_error()
    numbers: Results = {}
    errors: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        exact, plain = (
            case.compute(transformers, dtype, attn_implementation="eager") for dtype in (torch.float64, torch.float32)
        )
        errors[name] = {key: float(f"{relative_error(plain[key], value):.3g}") for key, value in exact.items()}
        for key, value in exact.items():
            # A kept result of zeros could not tell right from wrong.
            if not value.isfinite().all() or value.norm() == 0 or value.dtype != torch.float64:
                sys.exit(f"{name}/{key}: {value}")
            numbers[f"{name}/{key}"] = value.detach().contiguous()
    save_file(numbers, NUMBERS)
    made_by: dict[str, Any] = {
        "command": "python -m tests.golden.make_golden",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    ERRORS.write_text(json.dumps({"made_by": made_by, "float32_errors": errors}, indent=1) + "\n")
    print(f"{len(CASES)} cases, {len(numbers)} results, {NUMBERS.stat().st_size + ERRORS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
