"""What every test stands on."""

from __future__ import annotations

import inspect
import os

import numpy
import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Inputs drawn without a generator of their own are the same in each run: a test's result is the code's."""
    torch.manual_seed(0)


def _interpret_quickly() -> None:
    """Triton's interpreter prepares the whole language anew for each call of a function by a kernel, 2 ms of work. The
    kernel's own call has done it; only triton's library, which knows the language by another name, needs it once."""
    from triton.runtime import interpreter

    prepare, prepared = interpreter._patch_lang, set()

    def call(self, *args, **kwargs):
        module = inspect.getmodule(self.fn)
        if not hasattr(module, "tl") and module not in prepared:
            prepare(self.fn)
            prepared.add(module)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    numpy.seterr(all="ignore")  # kernels compute infinities and NaN without a word


if os.environ.get("TRITON_INTERPRET") == "1":
    _interpret_quickly()
