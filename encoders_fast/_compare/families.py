"""Which model families `compare` knows: one row each."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .refusal import RefusalError


@dataclass(frozen=True)
class Family:
    """One family. Its classes are called `prefix` + "Model" and `prefix` + "For...", as in transformers."""

    model_type: str
    """As config.json has it."""
    prefix: str
    positions: Callable[[Any], int]
    """config -> the longest text, in tokens, that the position embeddings have room for."""
    other_length: Callable[[Any, int], int | None]
    """(config, length) -> the length that transformers wants instead, where it does not accept this one."""

    def inputs(self, ids: Tensor, class_name: str) -> dict[str, Tensor]:
        """The arguments of the model's forward for ids [B, T]."""
        # Multiple choice wants [B, choices, T]: one choice each.
        return {"input_ids": ids[:, None] if class_name.endswith("ForMultipleChoice") else ids}


def fnet_other_length(config: Any, length: int) -> int | None:
    """With TPU optimizations transformers has a matrix for one length, and refuses all others up to 4096."""
    wanted = config.tpu_short_seq_length
    refuses = config.use_tpu_fourier_optimizations and length <= 4096 and length != wanted
    return wanted if refuses and wanted <= config.max_position_embeddings else None


def any_length(config: Any, length: int) -> int | None:
    return None


def roberta_positions(config: Any) -> int:
    """The first token's position is pad_token_id + 1."""
    return config.max_position_embeddings - config.pad_token_id - 1


FAMILIES = (
    Family("big_bird", "BigBird", lambda config: config.max_position_embeddings, any_length),
    Family("fnet", "FNet", lambda config: config.max_position_embeddings, fnet_other_length),
    Family("mobilebert", "MobileBert", lambda config: config.max_position_embeddings, any_length),
    Family("roberta-prelayernorm", "RobertaPreLayerNorm", roberta_positions, any_length),
    Family("xlm-roberta-xl", "XLMRobertaXL", roberta_positions, any_length),
)


def family_of(checkpoint: str, config: dict[str, Any]) -> Family:
    """The row for a checkpoint's config.json."""
    for family in FAMILIES:
        if config.get("model_type") == family.model_type:
            return family
    supported = ", ".join(family.model_type for family in FAMILIES)
    raise RefusalError(
        f"{checkpoint} is of type {config.get('model_type')!r} ({named_class(checkpoint, config) or 'no class'}),"
        f" which this library has no kernels for; it has {supported}"
    )


def named_class(checkpoint: str, config: dict[str, Any]) -> str | None:
    """The first class that a checkpoint's config.json names; None where it names none."""
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise RefusalError(f"{checkpoint}'s config.json has architectures {named!r}, which are not a list of classes")
    return named[0] if named else None


def class_name(checkpoint: str, family: Family, config: dict[str, Any], models: types.ModuleType) -> str:
    """The class that the checkpoint names, or its family's backbone where it names none."""
    backbone = family.prefix + "Model"
    named = named_class(checkpoint, config) or backbone
    # Beside models a family has other public names: its configuration, its base class, the classes of its outputs.
    heads = sorted(name for name in dir(models) if name.startswith(family.prefix + "For"))
    known = [*(name for name in heads if not name.endswith("Output")), backbone]
    if named in known:
        return named
    raise RefusalError(
        f"{checkpoint} holds a {named}, which is no model that this library has; it has {', '.join(known)}"
    )
