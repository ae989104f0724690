"""Fast encoders: FNet's models and ops, with the names, checkpoints and numbers of Hugging Face transformers."""

from ._dispatch import Backend, explain, register_backend, use_backend
from .ops import fourier_mixing, fourier_mixing_layer_norm

__all__ = ["Backend", "explain", "fourier_mixing", "fourier_mixing_layer_norm", "register_backend", "use_backend"]
