"""The ops as functions. Needs torch and nothing more.

An op's folder has its name too: `from encoders_fast.ops.fourier_mixing import reference` reaches the files.
"""

from .fourier_mixing.op import fourier_mixing, fourier_mixing_layer_norm

__all__ = ["fourier_mixing", "fourier_mixing_layer_norm"]
