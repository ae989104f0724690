"""All layers of MobileBERT in one call: bottleneck_input, attention and bottleneck_ffn, again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _dispatch
from ..._dispatch import Backend
from . import cpu
from .autograd import ffn_statics, input_statics
from .checks import check_width
from .op import _plainly
from .parameters import Parameters, Sequences, first_layer, promote


def plainly(h: Tensor) -> bool:
    """Whether nothing but kernels can see a call with such an h, and nothing is converted on its way to them."""
    autocast = torch.amp.is_autocast_available(h.device.type) and torch.is_autocast_enabled(h.device.type)
    return _plainly(h) and not autocast


def packed_layers(
    h: Tensor,
    before: Parameters,
    behind: Parameters,
    count: int,
    from_bottleneck: bool,
    activation: str,
    sequences: Sequences,
    alike: Callable[[], bool],
) -> Tensor | None:
    """h behind `count` layers, without checks, for callers whose parameters are plain tensors of the right shapes.

    `before` and `behind` have one layer's tensors after the other's, and the eps of one of them. Those of the first
    layer go together; `alike()` says whether the others are of its shapes and dtypes. h must be one that `plainly`
    takes.

    None where the layers have to be called one by one: where they are not alike, or parameters are inference tensors or
    biases and norms of several dtypes, or where the backend of one of the ops is not `cpu`.
    """
    first, last = first_layer(before, count), first_layer(behind, count)
    vectors = [*first.biases, *last.biases, *first.norms, *last.norms]
    if len({vector.dtype for vector in vectors}) > 1 or h.numel() == 0 or h.dim() != 3:
        return None
    check_width(h, first)
    (h,), _ = promote([h], first)
    rows = _rows(h, first, last)
    if rows is None or any(map(Tensor.is_inference, before.matrices + behind.matrices)):
        return None
    y = cpu.bottleneck_layers(h, before, behind, count, from_bottleneck, activation, sequences, alike)
    if y is not None:
        for op, row in count * rows:
            _dispatch.will_run(op, row)
    return y


def _rows(h: Tensor, first: Parameters, last: Parameters) -> list[tuple[str, Backend]] | None:
    """Each op and its backend; None where this is not `cpu` itself."""
    rows = []
    for op, statics, forward in (
        ("bottleneck_input", input_statics(h, first), cpu.bottleneck_input),
        ("bottleneck_ffn", ffn_statics(h, h if first.eps else None, last), cpu.bottleneck_ffn),
    ):
        row = _dispatch.would_choose(op, _dispatch.forced(), *statics)
        if row.forward is not forward:
            return None
        rows.append((op, row))
    return rows
