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

    def inputs(self, ids: Tensor, class_name: str) -> dict[str, Tensor]:
        """The arguments of the model's forward for ids [B, T]."""
        # Multiple choice wants [B, choices, T]: one choice each.
        return {"input_ids": ids[:, None] if class_name.endswith("ForMultipleChoice") else ids}


FAMILIES = (Family("fnet", "FNet", lambda config: config.max_position_embeddings),)


def family_of(checkpoint: str, config: dict[str, Any]) -> Family:
    """The row for a checkpoint's config.json."""
    for family in FAMILIES:
        if config.get("model_type") == family.model_type:
            return family
    named = config.get("architectures") or ["no class"]
    supported = ", ".join(family.model_type for family in FAMILIES)
    raise RefusalError(
        f"{checkpoint} is of type {config.get('model_type')!r} ({named[0]}), which this library has no kernels for;"
        f" it has {supported}"
    )


def class_name(checkpoint: str, family: Family, config: dict[str, Any], models: types.ModuleType) -> str:
    """The class that the checkpoint names, or its family's backbone where it names none."""
    named = config.get("architectures") or [family.prefix + "Model"]
    if named[0].startswith(family.prefix) and hasattr(models, named[0]):
        return named[0]
    known = sorted(name for name in dir(models) if name.startswith((family.prefix + "For", family.prefix + "Model")))
    known = [name for name in known if not name.endswith("Output")]
    raise RefusalError(f"{checkpoint} holds a {named[0]}, which this library does not have; it has {', '.join(known)}")
