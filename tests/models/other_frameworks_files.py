"""Writes the checkpoints of TensorFlow and Flax, from a PyTorch model and with neither framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
from torch import Tensor, nn

# What comes last in a parameter's path, by the kind of its layer.
_KERAS = {"Linear": {"weight": "kernel"}, "LayerNorm": {"weight": "gamma", "bias": "beta"}}
_FLAX = {"Linear": {"weight": "kernel"}, "LayerNorm": {"weight": "scale"}, "Embedding": {"weight": "embedding"}}

FILES = {"TF": "tf_model.h5", "Flax": "flax_model.msgpack"}


def weights(framework: str, model: nn.Module) -> dict[str, np.ndarray]:
    """Path in the model -> values, as that framework has them."""
    return (keras_weights if framework == "TF" else flax_weights)(model)


def write(framework: str, folder: Path, weights: dict[str, Any], sharded: bool = False) -> None:
    """The framework's file, or three shards and an index."""
    if sharded:
        (write_h5_shards if framework == "TF" else write_msgpack_shards)(folder, weights)
    else:
        (write_h5 if framework == "TF" else write_msgpack)(folder / FILES[framework], weights)


def keras_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Path in the model -> values, of MobileBERT or RoBERTa-PreLayerNorm with all its heads."""
    weights = {}
    base = "" if "For" in type(model).__name__ else f"{model.base_model_prefix}/"  # a bare encoder has a main layer too
    for name, kind, values in _parameters(model):
        if name.endswith("decoder.bias") or name == "lm_head.decoder.weight":
            continue  # there are none in Keras: RoBERTa's decoder is the words
        *path, last = name.split(".")
        if kind == "Embedding":
            last = "weight" if path[-1] == "word_embeddings" else "embeddings"
        elif name not in ("cls.predictions.dense.weight", "cls.predictions.decoder.weight"):  # no layers in Keras
            values = values.T if kind == "Linear" and last == "weight" else values
            last = _KERAS.get(kind, {}).get(last, last)
        parts = "/".join([*path, last]).replace("/layer/", "/layer_._").replace("/ffn/", "/ffn.")
        for layer in ("predictions", "seq_relationship"):
            parts = parts.replace(f"cls/{layer}/", f"{layer}___cls/{layer}/")
        weights[f"{base}{parts}:0"] = values
    return weights


def flax_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Path in the model -> values, of BigBird or RoBERTa-PreLayerNorm with all its heads."""
    weights = {}
    tied = model.config.tie_word_embeddings
    for name, kind, values in _parameters(model):
        *path, last = name.split(".")
        if name.endswith("decoder.bias") or (tied and name.endswith("decoder.weight")):
            continue
        values = values.T if kind == "Linear" and last == "weight" else values
        weights["/".join([*path, _FLAX.get(kind, {}).get(last, last)])] = values
    return weights


def _parameters(model: nn.Module) -> list[tuple[str, str, np.ndarray]]:
    """(name, kind of its layer, values), those that are tied as often as they have names."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    state: dict[str, Tensor] = model.state_dict()
    return [(name, kinds[name.rpartition(".")[0]], values.numpy()) for name, values in state.items()]


# ---- TensorFlow's files ---------------------------------------------------------------------------------------------


def write_h5(path: Path, weights: dict[str, np.ndarray], scope: str = "tf_model_1") -> None:
    """As Keras's `save_weights`: layer/scope/path, and in attributes the names of the layers and of their weights."""
    with h5py.File(path, "w") as file:
        layers = list(dict.fromkeys(name.split("/")[0] for name in weights))
        file.attrs.update({"layer_names": [layer.encode() for layer in layers], "backend": "tensorflow"})
        file.attrs["keras_version"] = "2.18.0"
        for layer in layers:
            names = [f"{scope}/{name}" for name in weights if name.startswith(f"{layer}/")]
            file.create_group(layer).attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                file[layer].create_dataset(name, data=weights[name.removeprefix(f"{scope}/")])
        file.create_group("top_level_model_weights").attrs["weight_names"] = np.zeros(0)


def write_h5_shards(folder: Path, weights: dict[str, np.ndarray], shards: int = 3) -> None:
    """As transformers 4 did: the path alone, and an index with the scope."""
    names = list(weights)
    index = {}
    for i in range(shards):
        file_name = f"tf_model-{i + 1:05d}-of-{shards:05d}.h5"
        with h5py.File(folder / file_name, "w") as file:
            for name in names[i::shards]:
                file.create_dataset(name, data=weights[name])
                index[f"tf_model/{name}"] = file_name
            file.attrs["layer_names"] = [name.encode() for name in names[i::shards]]
    _write_index(folder / "tf_model.h5.index.json", index)


# ---- Flax's files ---------------------------------------------------------------------------------------------------


def packed(values: np.ndarray, dtype: str | None = None) -> msgpack.ExtType:
    """An array as flax.serialization packs it."""
    return msgpack.ExtType(1, msgpack.packb((values.shape, dtype or values.dtype.name, values.tobytes())))


def in_chunks(values: np.ndarray, size: int) -> dict[str, Any]:
    """An array that is too large for msgpack, `size` elements at a time."""
    chunks = [values.ravel()[i : i + size] for i in range(0, values.size, size)]
    shape = {str(i): n for i, n in enumerate(values.shape)}
    numbered = {str(i): packed(chunk) for i, chunk in enumerate(chunks)}
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": numbered}


def tree(weights: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from paths."""
    root: dict[str, Any] = {}
    for name, values in weights.items():
        *path, last = name.split("/")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[last] = packed(values) if isinstance(values, np.ndarray) else values
    return root


def write_msgpack(path: Path, weights: dict[str, Any]) -> None:
    """As `flax.serialization.to_bytes`. What is no array is written as it is."""
    path.write_bytes(msgpack.packb(tree(weights), strict_types=True))


def write_msgpack_shards(folder: Path, weights: dict[str, Any], shards: int = 3) -> None:
    names = list(weights)
    index = {}
    for i in range(shards):
        file_name = f"flax_model-{i + 1:05d}-of-{shards:05d}.msgpack"
        write_msgpack(folder / file_name, {name: weights[name] for name in names[i::shards]})
        index |= dict.fromkeys(names[i::shards], file_name)
    _write_index(folder / "flax_model.msgpack.index.json", index)


def _write_index(path: Path, index: dict[str, str]) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
