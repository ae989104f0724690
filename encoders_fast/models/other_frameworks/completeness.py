"""Whether a checkpoint and the model loaded from it have the same weights, but for heads."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import FAMILIES

# These are new where a checkpoint has nothing of them: not every head saves a pooler, and an encoder that becomes a
# decoder has no cross attention yet.
_MAY_BE_NEW = ("pooler", "crossattention")
_LISTED = 8


def check_complete(report: dict[str, Any], state: dict[str, Tensor], sources: dict[str, str], model: Any) -> None:
    """That each weight of a checkpoint has its place in the model, or in another head of its family, and that the
    checkpoint has the whole backbone. Heads may be new, and so may a pooler or cross attention of which it has nothing.

    Args:
        report: transformers' loading report.
        state: the checkpoint's weights.
        sources: name in `state` -> name in the checkpoint.
        model: what was loaded.

    Raises: ValueError with the names, and with the numbers of layers where they differ.
    """
    left_over = _left_over(report["unexpected_keys"], model)
    missing = _missing(report["missing_keys"], state, model)
    if not left_over and not missing:
        return
    problems = []
    if left_over:
        names = _list(f"{sources.get(name, name)} {_shape(name, state)}".rstrip() for name in left_over)
        problems.append(f"no {model.config.model_type} model with this configuration has the checkpoint's {names}")
    if missing:
        problems.append(f"the checkpoint lacks the backbone's {_list(missing)}")
    found, wanted = len(_layers(state)), model.config.num_hidden_layers
    if found != wanted:
        problems.append(f"layers in the checkpoint: {found}, in the configuration (num_hidden_layers): {wanted}")
    raise ValueError("; ".join(problems))


def _left_over(names: Iterable[str], model: Any) -> list[str]:
    """Those of `names`, of which `model` has no use, that no other head of its family has either."""
    names = sorted(names)
    if not names:
        return []
    prefix = f"{model.base_model_prefix}."  # not every model has it
    elsewhere = {name.removeprefix(prefix) for name in _family_names(model)}
    return [name for name in names if name.removeprefix(prefix) not in elsewhere]


def _missing(names: Iterable[str], state: dict[str, Tensor], model: Any) -> list[str]:
    """Those of the model's `names` that are in its backbone and should have been in `state`."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    absent = {*_MAY_BE_NEW}.difference(*(name.split(".") for name in state))
    return [name for name in sorted(names) if name.startswith(prefix) and absent.isdisjoint(name.split("."))]


def _family_names(model: Any) -> Iterator[str]:
    """The parameters of every model of the family with this model's configuration, of the layers only the first."""
    family = model.config.model_type.replace("-", "_")
    module = importlib.import_module(f"...{family}", __name__)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = min(1, config.num_hidden_layers)
    config.is_decoder = config.add_cross_attention = False
    config.num_labels = 2  # question answering takes no other, and no name depends on it
    for name in FAMILIES[family]:
        # A causal model has the masked one's names, and complains where it is no decoder.
        if not name.endswith(("Config", "Output", "PreTrainedModel", "ForCausalLM")):
            with torch.device("meta"):
                yield from getattr(module, name)(config).state_dict()


def _layers(names: Iterable[str]) -> set[str]:
    return {match[1] for match in (re.search(r"(?:^|\.)encoder\.layer\.(\d+)\.", name) for name in names) if match}


def _shape(name: str, state: dict[str, Tensor]) -> str:
    return str(tuple(state[name].shape)) if name in state else ""  # `key_mapping` may have given it another name


def _list(names: Iterable[str]) -> str:
    """The names, of many only the first."""
    names = list(names)
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
