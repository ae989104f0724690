"""The op `fourier_mixing` as nn.Modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import fourier_mixing, fourier_mixing_layer_norm


class FourierMixing(nn.Module):
    """FNet's token mixing, Re(FFT2(x)) of x [B, T, D]. Has no parameters.

    Args:
        norm: "backward" (no scaling, as FNet) or "ortho" (divided by sqrt(T * D)).
    """

    def __init__(self, norm: str = "backward") -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return fourier_mixing(x, self.norm)

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}"


class FourierMixingLayerNorm(nn.Module):
    """LayerNorm(x + Re(FFT2(x))) of x [B, T, D], the first half of an FNet layer, in one op.

    Args:
        width: D.
        eps: added to the variance.
        norm: as in `FourierMixing`.

    Parameters: weight and bias, [D], ones and zeros at first, as in nn.LayerNorm.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-12,
        norm: str = "backward",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width, self.eps, self.norm = width, eps, norm
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return fourier_mixing_layer_norm(x, self.weight, self.bias, self.eps, self.norm)

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}, norm={self.norm!r}"
