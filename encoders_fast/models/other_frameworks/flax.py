"""Reads the weights in `flax_model.msgpack`, or in one of its shards. Needs msgpack."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# flax's extension types, each with [shape, dtype's name, bytes]. There is a third, a complex number: no weight is one.
_ARRAY, _SCALAR = 1, 3
# How an array above 1 GiB is written: {this: True, "shape": {"0": ..., ...}, "chunks": {"0": ..., ...}}.
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def read(path: str) -> Iterator[tuple[str, Tensor]]:
    """Each weight's path in the model ("bert/embeddings/LayerNorm/scale") and its values, as the file has them.

    Raises: ImportError without msgpack; OSError for what is not a whole msgpack file of a dictionary; ValueError for a
    weight that is not a bfloat16, float16, float32 or float64 array of the size that it claims.

    Source: flax.serialization, and `FlaxPreTrainedModel.save_pretrained` of transformers 4.
    """
    try:
        import msgpack
    except ImportError as error:
        raise ImportError(f"reading {path} needs msgpack: pip install 'encoders-fast[checkpoints]'") from error
    try:
        tree = msgpack.unpackb(Path(path).read_bytes())
    except ValueError as error:
        raise OSError(f"{path} is not a whole msgpack file: {str(error) or type(error).__name__}") from error
    if not isinstance(tree, dict):
        raise OSError(f"{path} has a {type(tree).__name__} in it, not a dictionary of weights")
    waiting: list[tuple[str, Any]] = [("", tree)]  # not by recursion, whose depth would be the file's to choose
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, dict) and _CHUNKED not in node:
            waiting += [(f"{name}/{key}" if name else str(key), node[key]) for key in reversed(node)]
        else:
            yield name, _chunked(node, f"{path}: {name}") if isinstance(node, dict) else _array(node, f"{path}: {name}")


def _array(node: Any, where: str) -> Tensor:
    import msgpack

    if not isinstance(node, msgpack.ExtType) or node.code not in (_ARRAY, _SCALAR):
        kind = f"an extension of type {node.code}" if isinstance(node, msgpack.ExtType) else f"a {type(node).__name__}"
        raise ValueError(f"{where} is {kind}, not an array")
    try:
        shape, name, values = msgpack.unpackb(node.data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is not an array of flax's: it must be [shape, dtype, bytes]") from error
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise ValueError(f"{where} is of type {name!r}; weights are {', '.join(_DTYPES)}")
    _check_shape(shape, where)
    if not isinstance(values, bytes) or len(values) != math.prod(shape) * dtype.itemsize:
        size = f"{len(values)} bytes" if isinstance(values, bytes) else f"a {type(values).__name__}"
        raise ValueError(f"{where} has the shape {shape}, the type {name} and {size} of values")
    if not values:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(values), dtype=dtype).reshape(shape)


def _chunked(node: dict[str, Any], where: str) -> Tensor:
    """The array that was cut up."""
    try:
        shape, chunks = ([node[key][str(i)] for i in range(len(node[key]))] for key in ("shape", "chunks"))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where} is not an array in chunks: it must have a shape and chunks, numbered from 0"
        ) from error
    _check_shape(shape, where)
    values = [_array(chunk, f"{where}, chunk {i}") for i, chunk in enumerate(chunks)]
    if sum(chunk.numel() for chunk in values) != math.prod(shape) or len({chunk.dtype for chunk in values}) > 1:
        found = ", ".join(f"{tuple(chunk.shape)} of {chunk.dtype}" for chunk in values)
        raise ValueError(f"{where} has the shape {shape}, and chunks {found or 'are missing'}")
    return torch.cat([chunk.flatten() for chunk in values]).reshape(shape)


def _check_shape(shape: Any, where: str) -> None:
    right = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    # PyTorch cannot count to more, even where one size is 0.
    if not right or math.prod(max(size, 1) for size in shape) >= 2**40:
        raise ValueError(f"{where} has the shape {shape!r}, which is none")
