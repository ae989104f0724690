"""Thin nn.Modules around the ops, usable alone. Needs torch and nothing more."""

from .block_sparse_attention import BlockSparseAttention
from .bottleneck import BottleneckFFN, BottleneckInput
from .fourier_mixing import FourierMixing, FourierMixingLayerNorm
from .residual_layer_norm import ResidualLayerNorm

__all__ = [
    "BlockSparseAttention",
    "BottleneckFFN",
    "BottleneckInput",
    "FourierMixing",
    "FourierMixingLayerNorm",
    "ResidualLayerNorm",
]
