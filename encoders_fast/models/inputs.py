"""What goes into a model: its checks, in one sentence each and before any work."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

_warned: set[str] = set()


def one_of(inputs: dict[str, Any]) -> tuple[str, Tensor]:
    """The name and the tensor of input_ids or inputs_embeds. Raises ValueError unless exactly one is given."""
    given = [(name, inputs[name]) for name in ("input_ids", "inputs_embeds") if inputs.get(name) is not None]
    if len(given) != 1:
        raise ValueError(f"give either input_ids or inputs_embeds; {'both' if given else 'neither'} are there")
    return given[0]


def leading_shape(inputs: dict[str, Any]) -> tuple[int, int]:
    """(B, T) of input_ids [B, T] or inputs_embeds [B, T, D]. Raises ValueError for another rank, both or neither."""
    name, tensor = one_of(inputs)
    if tensor.dim() != (2 if name == "input_ids" else 3):
        wanted = "[batch, tokens]" if name == "input_ids" else "[batch, tokens, width]"
        raise ValueError(f"{name} must be {wanted}; its shape is {tuple(tensor.shape)}")
    return tensor.shape[0], tensor.shape[1]


def check_tokens(
    inputs: dict[str, Any],
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    width: int,
    longest: int | None,
) -> None:
    """Check an encoder's inputs: input_ids [B, T] or inputs_embeds [B, T, width], T at most `longest`, and what goes
    with them. Raises ValueError for shapes, TypeError for ids that are not integers."""
    B, T = leading_shape(inputs)
    if T == 0:
        raise ValueError("the sequences have no tokens")
    if longest is not None and longest < T:
        raise ValueError(f"the sequences have {T} tokens, the model has {longest} positions")
    embeds = inputs["inputs_embeds"]
    if embeds is not None and embeds.shape[2] != width:
        raise ValueError(f"inputs_embeds {tuple(embeds.shape)} must have the model's width, {width}")
    ids = {"input_ids": inputs["input_ids"], "token_type_ids": token_type_ids, "position_ids": position_ids}
    for name, tensor in ids.items():
        if tensor is None:
            continue
        if tensor.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} must be int64 or int32; they are {tensor.dtype}")
        if tuple(tensor.shape) not in ((B, T), (1, T), (T,)):
            raise ValueError(f"{name} {tuple(tensor.shape)} must be {(B, T)}, one id per token")


def check_keywords(model: nn.Module, keywords: dict[str, Any]) -> None:
    """Pass what Trainer gives to every model; raise TypeError for any other keyword."""
    unknown = [name for name in keywords if name != "num_items_in_batch"]
    if unknown:
        raise TypeError(f"{type(model).__name__} has no argument {', '.join(map(repr, unknown))}")


def fold_choices(inputs: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
    """(B, choices, inputs) with the first two dimensions [B, choices] of every input made one."""
    name, tensor = one_of(inputs)
    if tensor.dim() != (3 if name == "input_ids" else 4):
        wanted = "[batch, choices, tokens]" if name == "input_ids" else "[batch, choices, tokens, width]"
        raise ValueError(f"{name} must be {wanted}; its shape is {tuple(tensor.shape)}")
    folded = dict(inputs)
    for key in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        if inputs.get(key) is not None and inputs[key].dim() > 1:
            folded[key] = inputs[key].flatten(0, -2)
    if name == "inputs_embeds":
        folded[name] = tensor.flatten(0, 1)
    return tensor.shape[0], tensor.shape[1], folded


def readable(tensor: Tensor) -> bool:
    """True where looking at a tensor's values costs next to nothing: a GPU would have to be waited for, and in a trace
    there are none."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return not torch._C._are_functorch_transforms_active() and not torch._C._len_torch_dispatch_stack()


@torch.compiler.assume_constant_result  # under torch.compile: once, while tracing
def warn_once(sentence: str) -> None:
    """Warn, the first time in this process that `sentence` is to be said."""
    if sentence not in _warned:
        _warned.add(sentence)
        warnings.warn(sentence, stacklevel=2)
