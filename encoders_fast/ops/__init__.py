"""The ops as functions. Needs torch and nothing more.

An op's folder has its name too: `from encoders_fast.ops.fourier_mixing import reference` reaches the files.
"""

from .block_sparse_attention.op import block_sparse_attention
from .block_sparse_attention.pattern import BlockSparsePattern
from .block_sparse_attention.probabilities import attention_probabilities
from .bottleneck.op import bottleneck_ffn, bottleneck_input
from .bottleneck.parameters import NormedProjection, Projection
from .fourier_mixing.op import fourier_mixing, fourier_mixing_layer_norm
from .packed_linear.op import packed_linear, packed_linears
from .packed_linear.packing import clear_packed, packed_bytes
from .residual_layer_norm.op import residual_layer_norm

__all__ = [
    "BlockSparsePattern",
    "NormedProjection",
    "Projection",
    "attention_probabilities",
    "block_sparse_attention",
    "bottleneck_ffn",
    "bottleneck_input",
    "clear_packed",
    "fourier_mixing",
    "fourier_mixing_layer_norm",
    "packed_bytes",
    "packed_linear",
    "packed_linears",
    "residual_layer_norm",
]
