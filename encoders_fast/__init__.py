"""Fast encoders with the names, checkpoints and numbers of Hugging Face transformers.

Ops and dispatch are here at once and need torch alone; a model's name loads transformers when it is first touched.
"""

from typing import Any

from . import models
from ._dispatch import Backend, register_backend, use_backend
from ._explain import explain
from .ops import (
    BlockSparsePattern,
    NormedProjection,
    Projection,
    attention_probabilities,
    block_sparse_attention,
    bottleneck_ffn,
    bottleneck_input,
    clear_packed,
    fourier_mixing,
    fourier_mixing_layer_norm,
    packed_bytes,
    packed_linear,
    packed_linears,
    residual_layer_norm,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "Backend",
    "BlockSparsePattern",
    "NormedProjection",
    "Projection",
    "attention_probabilities",
    "block_sparse_attention",
    "bottleneck_ffn",
    "bottleneck_input",
    "clear_packed",
    "explain",
    "fourier_mixing",
    "fourier_mixing_layer_norm",
    "packed_bytes",
    "packed_linear",
    "packed_linears",
    "register_backend",
    "residual_layer_norm",
    "use_backend",
]
__all__ += [name for name in models.__all__ if name != "FAMILIES"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(models, name)
    models.refuse(name, models.FAMILIES)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
