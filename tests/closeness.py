"""A result is right when it is as close to the exact one as plain PyTorch gets in the same dtype, within a factor."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Relative L2 distance, in float64."""
    exact = exact.detach().double()
    return ((actual.detach().double() - exact).norm() / exact.norm()).item()


def assert_as_good_as(actual: Tensor, same_dtype: Tensor, exact: Tensor, factor: float = 2.0) -> None:
    """`actual`'s error is at most `factor` times that of `same_dtype`, or the last bits of its dtype.

    The floor is for results that plain PyTorch happens to hit: half a unit in the last place over many elements, four
    units for a few.
    """
    assert actual.shape == same_dtype.shape == exact.shape
    assert actual.dtype == same_dtype.dtype
    assert exact.norm() > 0, "nothing can be learnt from zeros"
    ours, theirs = relative_error(actual, exact), relative_error(same_dtype, exact)
    floor = torch.finfo(actual.dtype).eps * (0.5 if actual.numel() >= 32 else 4)
    assert ours <= factor * theirs + floor, f"error {ours:.2e}; plain {actual.dtype} has {theirs:.2e}, {factor} times"
