"""FNet: what takes the place of transformers' modules."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.fnet import modeling_fnet as stock

from ...ops import fourier_mixing_layer_norm
from . import feed_forward
from .replacement import Replacement


class FNetFourierTransform(Replacement, stock.FNetFourierTransform):
    """LayerNorm(h + Re(FFT2(h))), in one op."""

    work = "fourier_mixing_layer_norm"

    def bypassed(self) -> dict[str, type[nn.Module]]:
        return {
            "self": stock.FNetBasicFourierTransform,
            "output": stock.FNetBasicOutput,
            "output.LayerNorm": nn.LayerNorm,
        }

    def obstacle(self) -> str | None:
        transform: Any = vars(self._modules["self"]).get("fourier_transform")
        function = transform.func if isinstance(transform, partial) else transform
        # Three ways of writing the same transform down; the second is right for sequences of one length only.
        if function not in (torch.fft.fftn, stock.two_dim_matmul, stock.fftn):
            return f"self.fourier_transform is {function!r}"
        return super().obstacle()

    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        if self.obstacle() is not None:
            return super().forward(hidden_states)
        norm: Any = self.output.LayerNorm
        return (fourier_mixing_layer_norm(hidden_states, norm.weight, norm.bias, norm.eps),)


class FNetIntermediate(feed_forward.Intermediate, stock.FNetIntermediate):
    pass


class FNetOutput(feed_forward.AddAndNormalize, stock.FNetOutput):
    pass


REPLACEMENTS = (FNetFourierTransform, FNetIntermediate, FNetOutput)
