"""TensorFlow's and Flax's weights as a state dict of PyTorch's."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import FAMILIES

_PARAMETERS = {
    "kernel": "weight",
    "embedding": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
}
"""What a layer's parameter is called in TensorFlow or Flax -> in PyTorch, where it is called something else."""


def convert(weights: Iterable[tuple[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict, and what each of its weights was called.

    Raises: ValueError where two different weights have one name in PyTorch.

    Source: modeling_tf_pytorch_utils.py and modeling_flax_pytorch_utils.py of transformers 4.
    """
    state: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for source, values in weights:
        # Layers in Keras have one name each, where PyTorch has lists (layer_._0) and modules that are only a path
        # (predictions___cls is the layer `predictions`, and `cls` in PyTorch).
        parts = [part.rpartition("___")[2] for part in source.removesuffix(":0").replace("_._", "/").split("/")]
        transposed = parts[-1] == "kernel"
        parts[-1] = _PARAMETERS.get(parts[-1], parts[-1])
        name = ".".join(parts)
        values = values.t().contiguous() if transposed and values.dim() == 2 else values
        # Keras writes a weight once for every layer that uses it.
        if name in state and not (sources[name] == source and torch.equal(values, state[name])):
            raise ValueError(f"{name} has two values, {sources[name]} and {source}")
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


def check_known(names: set[str], state: dict[str, Tensor], sources: dict[str, str], model: Any) -> None:
    """That each of `names` in `state`, of which `model` has no use, is a weight of another model of its family.

    Raises: ValueError with the names and shapes of all that are not.
    """
    if not names:
        return
    prefix = f"{model.base_model_prefix}."
    known = {_anywhere(name, prefix) for name in (*model.state_dict(), *_heads_names(model))}
    unknown = [name for name in sorted(names) if _anywhere(name, prefix) not in known]
    if unknown:
        listed = ", ".join(f"{sources[name]} {tuple(state[name].shape)}" for name in unknown)
        raise ValueError(f"no model of the family {model.config.model_type} has the weights {listed}")


def _anywhere(name: str, prefix: str) -> str:
    """Without the backbone's prefix, which not every model has, and a layer's number: a model may have fewer."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", name.removeprefix(prefix))


def _heads_names(model: Any) -> Iterator[str]:
    """The parameters of every model of the family, with one layer."""
    family = model.config.model_type.replace("-", "_")
    module = importlib.import_module(f"...{family}", __name__)
    for name in FAMILIES[family]:
        if not name.endswith(("Config", "Output", "PreTrainedModel")):
            # A causal model complains where it is no decoder, the others where they are.
            config = model.config_class(num_hidden_layers=1, is_decoder="CausalLM" in name)
            with torch.device("meta"):
                yield from getattr(module, name)(config).state_dict()
