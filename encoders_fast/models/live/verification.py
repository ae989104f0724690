"""Does an accelerated model give transformers' numbers?"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..observers import change_class
from .families import replaced
from .replacement import check_module


class Difference(NamedTuple):
    """Relative L2 distances of an output's tensor from transformers'."""

    overall: float
    worst: float
    """Of single channels, the tensor's last dimension."""
    channel: int
    """The channel that has it."""


class Verification(NamedTuple):
    """The differences of all outputs, by name."""

    model: str
    differences: dict[str, Difference]

    @property
    def worst(self) -> float:
        """The worst channel of all outputs."""
        return max((difference.worst for difference in self.differences.values()), default=0.0)

    def __str__(self) -> str:
        lines = [f"{self.model}: relative difference from transformers' forward"]
        for name, (overall, worst, channel) in self.differences.items():
            lines.append(f"  {name}: {overall:.1e}, worst channel {channel} with {worst:.1e}")
        return "\n".join(lines)


def verify(model: nn.Module, **inputs: Any) -> Verification:
    """Compare an accelerated model with transformers' own forward, on the same inputs and weights.

    Both run in evaluation mode and without gradients; afterwards the model is as it was. Channels are compared one by
    one because they may differ by orders of magnitude: MobileBERT's do by seven. Where transformers has no finite
    number nothing is compared; a channel that is zero in transformers and is not here has an infinite difference.

    Args:
        model: as `accelerate` leaves it.
        inputs: the arguments of its forward.

    Raises: TypeError for what is not a module; ValueError where nothing in the model is replaced, or other outputs come
    than from transformers; whatever the model itself raises for these inputs.
    """
    check_module(model)
    if not any(True for _ in replaced(model)):
        raise ValueError(f"nothing in this {type(model).__name__} is replaced: accelerate(model) first")
    with _evaluating(model), torch.no_grad():
        fast = dict(_tensors("", model(**_copied(inputs))))
        with _as_stock(model):
            stock = dict(_tensors("", model(**_copied(inputs))))
    if fast.keys() != stock.keys():
        raise ValueError(f"there are other outputs, {', '.join(fast)}, than transformers', {', '.join(stock)}")
    return Verification(type(model).__name__, {name: _difference(fast[name], stock[name]) for name in stock})


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _as_stock(model: nn.Module) -> Iterator[None]:
    modules = [(module, type(module)) for _, module in replaced(model)]
    for module, _ in modules:
        module.put_back()
    try:
        yield
    finally:
        for module, kind in modules:
            change_class(module, kind)


def _copied(inputs: dict[str, Any]) -> dict[str, Any]:
    """A cache grows with every call."""
    return {name: value if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in inputs.items()}


def _tensors(name: str, output: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield name or "output", output
    elif isinstance(output, dict):
        for key, value in output.items():
            yield from _tensors(f"{name}.{key}" if name else str(key), value)
    elif isinstance(output, (tuple, list)):
        for i, value in enumerate(output):
            yield from _tensors(f"{name}[{i}]", value)


def _difference(fast: Tensor, stock: Tensor) -> Difference:
    finite = stock.isfinite()
    exact = stock.double().where(finite, 0.0).reshape(-1, stock.shape[-1] if stock.dim() else 1)
    apart = (fast.double() - stock.double()).where(finite, 0.0).nan_to_num(nan=torch.inf).reshape(exact.shape)
    distances, sizes = apart.norm(dim=0), exact.norm(dim=0)
    errors = torch.where(distances == 0, 0.0, distances / sizes)  # infinite where only the size is zero
    overall = 0.0 if not distances.any() else (apart.norm() / exact.norm()).item()
    worst = errors.max(0)
    return Difference(overall, worst.values.item(), int(worst.indices))
