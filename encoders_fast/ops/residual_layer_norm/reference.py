"""What the op means, in plain PyTorch.

It also runs where no faster backend does, so it calls torch's own LayerNorm, in dtypes in which that keeps statistics
and sums in float32 (float64 for float64).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._dropout import dropout


def residual_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float, rng_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    if rng_state is None or dropout_p == 0:
        s = (residual + x).contiguous()
    else:
        s = (residual.to(wide) + dropout(x.to(wide), dropout_p, rng_state)).to(x.dtype).contiguous()
    # Beside half parameters the CPU rounds the statistics to half, and no other device takes a mixture.
    on_cpu = s.device.type == "cpu"
    rows = s if on_cpu or s.dtype == weight.dtype else s.to(wide)
    weight, bias = (t.to(wide if on_cpu else rows.dtype) for t in (weight, bias))
    y, mean, rstd = torch.native_layer_norm(rows, s.shape[-1:], weight, bias, eps)
    return y.to(s.dtype), s, mean.squeeze(-1), rstd.squeeze(-1)


def residual_layer_norm_backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    rng_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The CPU sums the parameters' gradients in the dtype of the rows: in bfloat16 2000 rows lose all but two digits.
    as_stored = s.dtype == weight.dtype and s.device.type != "cpu"
    dtype = s.dtype if as_stored else torch.promote_types(s.dtype, torch.float32)
    scale = weight.to(dtype)
    dresidual, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.to(dtype), s.to(dtype), s.shape[-1:], mean[..., None], rstd[..., None], scale, scale, [True, True, True]
    )
    if ds is not None:
        dresidual = dresidual + ds
    dresidual = dresidual.to(s.dtype)
    dx = s.new_empty(0) if rng_state is None or dropout_p == 0 else dropout(dresidual, dropout_p, rng_state)
    return dx, dresidual, dweight.to(weight.dtype), dbias.to(weight.dtype)
