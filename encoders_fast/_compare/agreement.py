"""How far two models' outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# Largest relative L2 difference that still counts as the same numbers. In float32 two right implementations of an
# encoder differ by rounding alone, about 1e-6 after a dozen layers; 1e-4 leaves room for depth and for unlucky weights,
# and a wrong transform, mask or activation is at 1e-3 and above. A half type rounds every activation of every layer to
# a relative 2^-9 (bfloat16) or 2^-12 (float16); some eighty of these add up to about 1.6e-2 and 2e-3, times three.
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 6e-3}


@dataclass
class Difference:
    """Of one output tensor, the worst over all rounds."""

    absolute: float = 0.0
    """Largest |ours - theirs|."""
    relative: float = 0.0
    """The same, divided by the root mean square of transformers' output."""
    l2: float = 0.0
    """Root mean square of the difference, divided by that of transformers' output."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def tensors(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """A model output's floating-point tensors by name."""
    return {name: value for name, value in output.items() if isinstance(value, Tensor) and value.is_floating_point()}


def widen(differences: dict[str, Difference], ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Take one more round into account. A name that only one side has counts as infinitely far."""
    for name in ours.keys() | theirs.keys():
        worst = differences.setdefault(name, Difference())
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            new = Difference(float("inf"), float("inf"), float("inf"))
        else:
            new = difference(ours[name], theirs[name])
        for field in ("absolute", "relative", "l2"):
            setattr(worst, field, larger(getattr(worst, field), getattr(new, field)))


def larger(one: float, other: float) -> float:
    """max(), in which a NaN is larger than everything."""
    return one if math.isnan(one) or one >= other else other


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    theirs = theirs.float()
    apart = ours.float() - theirs
    scale = theirs.square().mean(dtype=torch.float64).sqrt().item()
    absolute = apart.abs().max().item()
    rms = apart.square_().mean(dtype=torch.float64).sqrt().item()
    if scale == 0.0:
        return Difference(absolute, 0.0 if absolute == 0.0 else float("inf"), 0.0 if rms == 0.0 else float("inf"))
    return Difference(absolute, absolute / scale, rms / scale)


def agree(differences: dict[str, Difference], dtype: torch.dtype) -> bool:
    """Whether every output is within the limit. A NaN is not."""
    return bool(differences) and all(found.l2 <= LIMITS[dtype] for found in differences.values())
