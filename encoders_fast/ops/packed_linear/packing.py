"""Weights in the order that a backend reads them: packed once, and kept as long as the weight lives and stays as it is.

The store is the process's, not a module's: nothing of it is saved, copied or pickled, and modules that share a
parameter share its packed form. What counts as the same weight is the tensor itself, its version counter, memory, dtype
and device, and 64 of its elements: torch does not count changes through `weight.data` and through other libraries'
views of the memory. After one of these that leaves most of a weight as it was, call `clear_packed`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ... import _native

_ops = torch.ops.encoders_fast_native


class _Entry(NamedTuple):
    storages: tuple[weakref.ref[torch.UntypedStorage], ...]
    """Not the weights: a tensor that is referred to weakly cannot be swapped with another."""
    stamps: list[Any]
    sample: Any
    packed: Tensor
    memory: int
    """Where it is: parts of one tensor are one memory."""
    nbytes: int
    """Of the whole memory."""


_entries: dict[tuple[Any, ...], _Entry] = {}


_ATTRIBUTES = attrgetter("_version", "device", "dtype", "shape")


def _stamps(weights: tuple[Tensor, ...]) -> list[Any]:
    """By the list: MobileBERT's layers have 360 weights."""
    return [*map(_ATTRIBUTES, weights), *map(Tensor.data_ptr, weights), *map(Tensor.stride, weights)]


def _sample(weights: tuple[Tensor, ...]) -> Any:
    if _native.missing is None:
        return _ops.packed_linear_sample.default(weights)
    return [w.detach()[:: 1 + w.shape[0] // 8, :: 1 + w.shape[1] // 8].double().sum().item() for w in weights]


def packed(layout: str, weights: tuple[Tensor, ...], pack: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """`pack` of the weights [N, K], from the store where they are in it.

    `layout` names what `pack` makes. An inference tensor has no version counter: it must not come here.
    """
    found = kept(layout, weights)
    if found is not None:
        return found
    state = state_of(weights)  # before: another thread may change them meanwhile
    with torch.inference_mode(False), torch.no_grad():  # two threads may both come here, and pack the same
        tensor = pack([weight.detach() for weight in weights])
    keep(layout, weights, tensor, state)
    return tensor


def state_of(weights: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """What will be another one when they have changed."""
    return _stamps(weights), _sample(weights)


def kept(layout: str, weights: tuple[Tensor, ...]) -> Tensor | None:
    """What is in the store, if it is still right."""
    entry = _entries.get((layout, *map(id, weights)))
    if entry is None or entry.stamps != _stamps(weights) or entry.sample != _sample(weights):
        return None
    return entry.packed


def keep(layout: str, weights: tuple[Tensor, ...], tensor: Tensor, state: tuple[Any, Any]) -> None:
    """From now on `tensor`, which may be a part of a larger one, is what `packed` finds, as long as the weights are in
    the `state` that they had before they were packed."""
    key = (layout, *map(id, weights))
    storages = tuple(weakref.ref(w.untyped_storage(), lambda _: _entries.pop(key, None)) for w in weights)
    if tensor.layout == torch.strided:
        storage = tensor.untyped_storage()
        memory, nbytes = storage.data_ptr(), storage.nbytes()
    else:
        memory, nbytes = id(tensor), sum(weight.nbytes for weight in weights)
    _entries[key] = _Entry(storages, *state, tensor, memory, nbytes)


def packed_bytes() -> int:
    """The memory of all packed weights, in bytes."""
    return sum({entry.memory: entry.nbytes for entry in list(_entries.values())}.values())


def clear_packed() -> None:
    """Forget all packed weights; the next call packs again."""
    _entries.clear()


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """torch's fused optimizers, of 2.13 too, change weights without counting it, and maybe a few rows of them only."""
    if any(group.get("fused") for group in optimizer.param_groups):
        clear_packed()


register_optimizer_step_post_hook(_after_step)
