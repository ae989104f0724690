"""Peak memory of one forward, above the weights.

On a CPU each model gets a process of its own, so that neither profits from memory that the other left behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _machine
from .checkpoint import Checkpoint, describe, libraries, load
from .refusal import RefusalError

CPU_METHOD = (
    "what one forward adds to the resident memory of a process that has just loaded this model alone, at its highest"
    " (VmHWM)"
)
CUDA_METHOD = "what one forward adds to the memory that torch has allocated, at its highest (max_memory_allocated)"
SECONDS_ALLOWED = 600


def on_cuda(run: Callable[[Tensor], Any], ids: Tensor) -> int:
    torch.cuda.synchronize(ids.device)
    torch.cuda.reset_peak_memory_stats(ids.device)
    before = torch.cuda.memory_allocated(ids.device)
    run(ids)
    torch.cuda.synchronize(ids.device)
    return torch.cuda.max_memory_allocated(ids.device) - before


def on_cpu(checkpoint: Checkpoint, library: str, dtype: str, ids: Tensor) -> int | str:
    """Bytes, or the sentence why they could not be measured. `library` is "encoders_fast" or "transformers"."""
    order = {"checkpoint": checkpoint.name, "library": library, "dtype": dtype, "ids": ids.tolist()}
    try:
        child = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=SECONDS_ALLOWED,
        )
    except subprocess.TimeoutExpired:
        return f"the process that measures {library}'s memory took longer than {SECONDS_ALLOWED} s"
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        return f"the process that measures {library}'s memory failed: {last}"
    answer = json.loads(child.stdout)
    return answer if answer is not None else "the kernel does not tell a process's peak memory here"


def main() -> int:
    """The child: reads what to measure from stdin, prints the bytes."""
    order = json.load(sys.stdin)
    transformers, models = libraries()
    library = transformers if order["library"] == "transformers" else models
    checkpoint = describe(order["checkpoint"])
    try:
        model, _ = load(checkpoint, library, getattr(torch, order["dtype"]), "cpu")
    except RefusalError as refusal:
        print(refusal, file=sys.stderr)
        return 2
    ids = checkpoint.family.inputs(torch.tensor(order["ids"]), checkpoint.class_name)
    for parameter in model.parameters():
        # Weights mapped from a file take memory only once they are read.
        parameter.sum()
    with torch.inference_mode():
        print(json.dumps(_machine.peak_memory(lambda: model(**ids))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
