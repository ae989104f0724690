"""A wrong kernel has no speed: every case checks its outputs before it times them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.contender import Contender, Expected

# How much larger than plain PyTorch's own error in the same dtype an error may be.
FACTOR = 2.0


def relative_l2(actual: Tensor, exact: Tensor) -> float:
    """|actual - exact| / |exact|, both as float64."""
    if actual.shape != exact.shape:
        raise AssertionError(f"the output is {tuple(actual.shape)}, expected {tuple(exact.shape)}")
    exact = exact.double()
    return ((actual.double() - exact).norm() / exact.norm()).item()


def expect(plain: Tensor, exact: Tensor, floor: float = 0.0) -> Expected:
    """Allows twice the error of `plain`, PyTorch's own result in the same dtype, or `floor` where that is more.

    The floor is for cases in which the plain computation happens to round better than one can expect.
    """
    return Expected(exact.detach(), max(FACTOR * relative_l2(plain.detach(), exact.detach()), floor))


def check(contender: Contender, result: Any) -> tuple[float, float]:
    """(error, allowed) of the output that is nearest to its limit. AssertionError where one is over it, or NaN."""
    outputs = contender.outputs(result)
    if not contender.expected or len(outputs) != len(contender.expected):
        raise AssertionError(f"{contender.name} has {len(outputs)} outputs, {len(contender.expected)} are expected")
    errors = []
    for actual, (exact, allowed) in zip(outputs, contender.expected, strict=True):
        error = relative_l2(actual.detach(), exact)
        if not error <= allowed:
            raise AssertionError(f"{contender.name}: relative L2 error {error:.2e}, allowed {allowed:.2e}; not timed")
        errors.append((error, allowed))
    return max(errors, key=lambda pair: pair[0] / pair[1])
