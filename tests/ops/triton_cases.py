"""The calls whose kernels are compiled offline, at sizes that the models have: name -> the launches of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tests.ops.triton_offline import Launch, recorded

CASES: dict[str, Callable[[], list[Launch]]] = {}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _residual_layer_norm(D: int, dtype: torch.dtype, dropout_p: float) -> Callable[[], list[Launch]]:
    def run() -> list[Launch]:
        from encoders_fast.ops.residual_layer_norm import triton

        x, weight, state = torch.empty(2, 512, D, dtype=dtype), torch.empty(D, dtype=dtype), torch.tensor([3, 4])
        with recorded(triton) as launches:
            y, s, mean, rstd = triton.residual_layer_norm(x, x, weight, weight, 1e-5, dropout_p, state)
            triton.residual_layer_norm_backward(y, s, s, weight, mean, rstd, dropout_p, state)
        return launches

    return run


def _fourier_mixing(shape: tuple[int, int, int], dtype: torch.dtype, backward: bool) -> Callable[[], list[Launch]]:
    def run() -> list[Launch]:
        from encoders_fast.ops.fourier_mixing import triton

        x, weight, rstd = torch.empty(shape, dtype=dtype), torch.empty(shape[2], dtype=dtype), torch.empty(shape[:2])
        with recorded(triton) as launches:
            if backward:
                triton.fourier_mixing_layer_norm_backward(x, weight, x, rstd, "backward")
            else:
                triton.fourier_mixing_layer_norm(x, weight, weight, 1e-12, "backward", True)
        return launches

    return run


def _cases() -> Iterator[tuple[str, Callable[[], list[Launch]]]]:
    for D in (128, 768, 2560, 16384):
        for name, dtype in DTYPES.items():
            yield f"residual_layer_norm {D} {name}", _residual_layer_norm(D, dtype, 0.0)
    yield "residual_layer_norm 768 bfloat16 with dropout", _residual_layer_norm(768, torch.bfloat16, 0.1)
    yield "residual_layer_norm 771 float32 with dropout", _residual_layer_norm(771, torch.float32, 0.1)
    for name, dtype in DTYPES.items():
        for way in ("forward", "backward"):
            yield f"fourier_mixing 8 512 768 {name} {way}", _fourier_mixing((8, 512, 768), dtype, way == "backward")
    for shape in ((1, 4096, 1024), (2, 1021, 1000), (2, 509, 100)):  # long; primes and wide rows; awkward narrow ones
        for name in ("float32", "bfloat16"):
            yield f"fourier_mixing {' '.join(map(str, shape))} {name}", _fourier_mixing(shape, DTYPES[name], False)


CASES.update(_cases())
