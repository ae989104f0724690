"""TensorFlow's and Flax's weights as a state dict of PyTorch's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_PARAMETERS = {
    "kernel": "weight",
    "embedding": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
}
"""What a layer's parameter is called in TensorFlow or Flax -> in PyTorch, where it is called something else."""


def convert(weights: Iterable[tuple[str, Tensor]], prefix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict, and what each of its weights was called.

    Args:
        weights: path in the other framework's model and values.
        prefix: what the backbone's names begin with in models with a head.

    Raises: ValueError where two different weights have one name in PyTorch, with or without the prefix.

    Source: modeling_tf_pytorch_utils.py and modeling_flax_pytorch_utils.py of transformers 4.
    """
    state: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    names: dict[str, str] = {}  # without the prefix -> with it if it is there
    for source, values in weights:
        # Layers in Keras have one name each, where PyTorch has lists (layer_._0) and modules that are only a path
        # (predictions___cls is the layer `predictions`, and `cls` in PyTorch).
        parts = [part.rpartition("___")[2] for part in source.removesuffix(":0").replace("_._", "/").split("/")]
        transposed = parts[-1] == "kernel"
        parts[-1] = _PARAMETERS.get(parts[-1], parts[-1])
        name = ".".join(parts)
        values = values.t().contiguous() if transposed and values.dim() == 2 else values
        earlier = names.setdefault(name.removeprefix(prefix), name)
        # Keras writes a weight once for every layer that uses it.
        if earlier in state and not (sources[earlier] == source and torch.equal(values, state[earlier])):
            raise ValueError(f"{name} has two values, {sources[earlier]} and {source}")
        state[name], sources[name] = values, source
    return state, sources


def settle_ties(state: dict[str, Tensor], ties: dict[str, str], config: Any) -> None:
    """Make a language head's decoder in `state` what it is in the other framework, where it need not be the words'.

    Keras has a decoder of its own beside MobileBERT's words, whatever the configuration says. If they have gone
    different ways, `config.tie_word_embeddings` becomes False.

    Args:
        ties: parameter -> parameter that it is tied to, of the model that is to be loaded.
    """
    for target, source in ties.items() if config.tie_word_embeddings else ():
        if target in state and source in state:
            if torch.equal(state[target], state[source]):
                del state[target]
            else:
                warnings.warn(f"{target} and {source} differ in this checkpoint: they are loaded untied", stacklevel=2)
                config.tie_word_embeddings = False
    has_head = any(source in state for target, source in ties.items() if target.endswith("bias"))
    if has_head and not config.tie_word_embeddings:
        state |= {target: state[source] for target, source in ties.items() if target not in state and source in state}
