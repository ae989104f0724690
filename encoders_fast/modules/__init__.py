"""Thin nn.Modules around the ops, usable alone. Needs torch and nothing more."""

from .fourier_mixing import FourierMixing, FourierMixingLayerNorm

__all__ = ["FourierMixing", "FourierMixingLayerNorm"]
