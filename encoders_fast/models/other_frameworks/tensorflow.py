"""Reads the weights in `tf_model.h5`, a Keras 2 file, or in one of its shards. Needs h5py."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def read(path: str) -> Iterator[tuple[str, Tensor]]:
    """Each weight's path in the model ("mobilebert/embeddings/LayerNorm/bias:0") and its values, as the file has them.

    Raises: ImportError without h5py; OSError for what is not a whole HDF5 file; ValueError for a weight that is not a
    float16, float32 or float64 array, or whose values are not in the file.

    Source: `save_weights` of Keras 2, and `TFPreTrainedModel.save_pretrained` of transformers 4.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"reading {path} needs h5py: pip install 'encoders-fast[checkpoints]'") from error
    with _as_one_error(path):
        file = h5py.File(path, "r")
    with file:
        datasets: dict[str, Any] = {}

        def collect(_: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                datasets[item.name.lstrip("/")] = item

        with _as_one_error(path):
            # Keras writes layer/model/path, transformers' shards are the path alone.
            outer = 2 if "keras_version" in file.attrs else 0
            # It follows no links: they can lead to other files.
            file.visititems(collect)
        for name, dataset in datasets.items():
            yield "/".join(name.split("/")[outer:]), _values(dataset, path, name)


@contextlib.contextmanager
def _as_one_error(path: str) -> Iterator[None]:
    """h5py has an exception of its own for each way of being broken."""
    try:
        yield
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise OSError(f"{path} is not a whole HDF5 file: {error}") from error


def _values(dataset: Any, path: str, name: str) -> Tensor:
    with _as_one_error(path):
        dtype, shape, stored = dataset.dtype, dataset.shape, dataset.id.get_storage_size()
        elsewhere = dataset.external or dataset.is_virtual
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise ValueError(f"{path}: {name} is of type {dtype}; weights are float16, float32 or float64")
    if elsewhere:
        raise ValueError(f"{path}: {name} has its values in another file")
    # HDF5 makes up what was never written, of any size.
    if shape is None or stored < math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: {name} has the shape {shape}, and {stored} bytes of values; it must be uncompressed")
    with _as_one_error(path):
        values = dataset[()]
    return torch.as_tensor(values.astype(dtype.newbyteorder("="), copy=False))
