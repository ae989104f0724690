"""The backend `cpu`, csrc/bottleneck/cpu.cpp: its refusals, and the weights in the order that it reads them.

Weights that multiply the same input are packed together and kept as packed_linear's are: ../packed_linear/packing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import _native
from ..._dispatch import Key
from ..packed_linear.checks import ACTIVATIONS
from ..packed_linear.packing import keep, kept, packed, state_of
from .parameters import Parameters, Sequences, of_layers

_ops = torch.ops.encoders_fast_native
_TYPES = (torch.float32, torch.bfloat16)


def input_why_not(key: Key) -> str | None:
    if key.device != "cpu":
        return f"runs on the CPU; the input is on {key.device}"
    for name, dtype in zip(("activations are", "weights are", "biases are"), key.dtypes, strict=False):
        if dtype not in _TYPES:
            return f"takes float32 and bfloat16; {name} {dtype}"
    return _native.missing or _ops.packed_linear_missing(torch.bfloat16 in key.dtypes[1:2]) or None


def ffn_why_not(key: Key) -> str | None:
    why = input_why_not(key)
    if why is None and key.widths[3:4] == (0,):
        return "takes feed-forward blocks of one width; these differ"
    return why


def _pack(weights: Sequence[Tensor]) -> Tensor:
    """Panels of weights [N, K], one under the other."""
    return _ops.bottleneck_pack.default(torch.cat(list(weights)), [len(weight) for weight in weights])


def _panels(*weights: Tensor) -> Tensor:
    if any(map(Tensor.is_inference, weights)):  # without a version counter: nobody would see them change
        return _pack(weights)
    return packed("bottleneck", weights, _pack)


_Group = tuple[Tensor, ...]


def _input_groups(matrices: Sequence[Tensor], from_bottleneck: bool) -> tuple[_Group, _Group]:
    """What h is multiplied with, and what the narrow stream is."""
    outputs, bottlenecks = matrices[:3], matrices[3:]
    of_narrow = 3 if from_bottleneck else 2 if len(bottlenecks) == 2 else 0
    return (*bottlenecks, *outputs[of_narrow:]), tuple(outputs[:of_narrow])


def _ffn_groups(matrices: Sequence[Tensor]) -> tuple[_Group, _Group, _Group]:
    """The attention's output; what takes the narrow stream; what gives it."""
    output, *rest = matrices
    return (output,), tuple(rest[::2]), tuple(rest[1::2])


def bottleneck_input(h: Tensor, parameters: Parameters, from_bottleneck: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    matrices, biases, norms, eps = parameters
    wide, narrow = _input_groups(matrices, from_bottleneck)
    panels = _panels(*wide), _panels(*narrow) if narrow else None
    return _ops.bottleneck_input.default(h, *panels, biases, norms, eps, from_bottleneck)


def bottleneck_ffn(
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    parameters: Parameters,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
) -> Tensor:
    matrices, biases, norms, eps = parameters
    return _ops.bottleneck_ffn.default(
        attention,
        u0,
        h,
        *(_panels(*group) for group in _ffn_groups(matrices)),
        biases,
        norms,
        eps,
        ACTIVATIONS.index(activation),
        dropout_p,
        rng_state,
    )


def _panels_of_layers(
    before: Parameters, behind: Parameters, count: int, from_bottleneck: bool, alike: Callable[[], bool]
) -> Tensor | None:
    """Those of all groups in the order of their use, in one tensor. A layer alone finds its own ones in there."""
    lists = before.matrices, behind.matrices
    weights = *lists[0], *lists[1]

    def pack(_: Sequence[Tensor]) -> Tensor:
        of_input, of_ffn = (of_layers(matrices, count) for matrices in lists)
        groups = [
            group
            for one, other in zip(of_input, of_ffn, strict=True)
            for group in (*_input_groups(one, from_bottleneck), *_ffn_groups(other))
            if group
        ]
        sizes = [sum(-(-len(weight) // _PANEL) for weight in group) * _panel_elements(group[0]) for group in groups]
        panels = groups[0][0].new_empty(sum(sizes))
        for group, part in zip(groups, panels.split(sizes), strict=True):
            state = state_of(group)
            keep("bottleneck", group, part.copy_(_pack(group)), state)
        return panels

    panels = kept("bottleneck layers", weights)
    return packed("bottleneck layers", weights, pack) if panels is None and alike() else panels


_PANEL = 64
"""Columns of a panel: csrc/bottleneck/cpu_kernels.h."""


def _panel_elements(weight: Tensor) -> int:
    K = weight.shape[1]
    return _PANEL * (K + K % 2 if weight.dtype == torch.bfloat16 else K)


def bottleneck_layers(
    h: Tensor,
    before: Parameters,
    behind: Parameters,
    count: int,
    from_bottleneck: bool,
    activation: str,
    sequences: Sequences,
    alike: Callable[[], bool],
) -> Tensor | None:
    """None where layers differ. `alike` tells, and is asked before weights are packed: kept ones have not changed."""
    panels = _panels_of_layers(before, behind, count, from_bottleneck, alike)
    if panels is None:
        return None
    y = _ops.bottleneck_layers.default(
        h,
        panels,
        *before[1:],
        from_bottleneck,
        *behind[1:],
        ACTIVATIONS.index(activation),
        sequences.heads,
        sequences.scale,
        sequences.lengths,
        sequences.keys,
        sequences.head_factors,
    )
    return y if y.numel() else None  # it has looked at biases and norms
