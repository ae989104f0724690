"""The calls whose kernels are compiled offline, at sizes that the models have: name -> the launches of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from encoders_fast.ops.bottleneck.parameters import Parameters
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


def _parameters(dtype: torch.dtype, plain: list[tuple[int, int]], normed: list[int], eps: float | None) -> Parameters:
    """Of matrices with these shapes [N, K]. Those that are in `normed` have norms."""
    vectors = [torch.empty(N, dtype=dtype) for N, _ in plain]
    norms = [vectors[i] for i in normed for _ in range(2)]
    matrices = [torch.empty(shape, dtype=dtype) for shape in plain]
    return Parameters(matrices, vectors, norms, [-1.0 if eps is None else eps] * len(normed))


def _different(launches: list[Launch]) -> list[Launch]:
    """One launch of each kernel, and of each of its kinds: sizes alone make none."""
    kinds = ("SAVES", "ACTIVATION", "COLUMNS")
    return list({(each.name, *map(each.constants.get, kinds)): each for each in reversed(launches)}.values())[::-1]


def _bottleneck_input(
    rows: int, dtype: torch.dtype, variant: str = "shared", eps: float | None = None
) -> Callable[[], list[Launch]]:
    """As wide as the published model."""
    products = {"shared": [128, 128, 512], "from bottleneck": [128, 128, 128], "no bottleneck": [512, 512, 512]}
    bottlenecks = {"shared": 2, "from bottleneck": 1, "no bottleneck": 0}[variant]

    def run() -> list[Launch]:
        from encoders_fast.ops.bottleneck import triton

        A = 512 if variant == "no bottleneck" else 128
        shapes = [(A, K) for K in products[variant]] + [(128, 512)] * bottlenecks
        parameters = _parameters(dtype, shapes, list(range(3, 3 + bottlenecks)), eps)
        h, narrow = torch.empty(rows, 512, dtype=dtype), variant == "from bottleneck"
        with recorded(triton) as launches:
            outputs = triton.bottleneck_input(h, parameters, narrow)
            triton.bottleneck_input_backward(*outputs, h, parameters, narrow, True)
        return _different(launches)

    return run


def _bottleneck_ffn(
    rows: int,
    dtype: torch.dtype,
    eps: float | None = None,
    dropout_p: float = 0.0,
    D: int = 128,
    bottleneck: bool = True,
) -> Callable[[], list[Launch]]:
    """The published widths, with two feed-forward blocks of its four: the kernels have a loop for each."""

    def run() -> list[Launch]:
        from encoders_fast.ops.bottleneck import triton

        shapes = [(D, D)] + [(4 * D, D), (D, 4 * D)] * 2 + [(512, D)] * bottleneck
        parameters = _parameters(dtype, shapes, [0, 2, 4, 5][: 3 + bottleneck], eps)
        h, u = torch.empty(rows, 512, dtype=dtype) if bottleneck else None, torch.empty(rows, D, dtype=dtype)
        options = ("relu" if eps is None else "gelu", dropout_p, torch.tensor([3, 4]))
        with recorded(triton) as launches:
            y = triton.bottleneck_ffn(u, u, h, parameters, *options)
            triton.bottleneck_ffn_backward(y, u, u, h, parameters, *options, True)
        return _different(launches)

    return run


def _block_sparse_attention(
    K: int, dtype: torch.dtype, tokens: int = 2048, block: int = 64, masked: bool = False
) -> Callable[[], list[Launch]]:
    """BigBird's pattern in training, whose global lists are in several slices. masked: with all options there are."""

    def run() -> list[Launch]:
        from encoders_fast.ops import BlockSparsePattern
        from encoders_fast.ops.block_sparse_attention import triton
        from encoders_fast.ops.block_sparse_attention.checks import Options

        B, H = 2, 12
        lists = BlockSparsePattern.big_bird(tokens, block=block, heads=H, training=True).lists
        x = torch.empty(B, tokens, H, K, dtype=dtype).transpose(1, 2)
        real, factors = torch.empty(B, tokens, dtype=torch.bool), torch.empty(B, H)
        masks = (real, real, factors, torch.empty(2, dtype=torch.int64), 0.1) if masked else (None,) * 4 + (0.0,)
        options = Options(block, masked, *masks, 0.125)
        with recorded(triton) as launches:
            out, log_sum_exp = triton.block_sparse_attention(x, x, x, lists, options)
            dlog_sum_exp = log_sum_exp if masked else None
            triton.block_sparse_attention_backward(x, dlog_sum_exp, x, x, x, out, log_sum_exp, lists, options)
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
    # A machine without a GPU counts as four multiprocessors: 64, 128 and more rows are tiles of 16, 32 and 64.
    float32, bfloat16, float16 = DTYPES.values()
    sizes = [(64, bfloat16), (128, bfloat16), (256, bfloat16), (256, float16), (64, float32)]
    for rows, dtype in sizes:
        yield f"bottleneck_ffn {rows} {str(dtype)[6:]}", _bottleneck_ffn(rows, dtype)
    yield "bottleneck_ffn 256 bfloat16 with layer_norm and dropout", _bottleneck_ffn(256, bfloat16, 1e-5, 0.1)
    yield (
        "bottleneck_ffn 128 bfloat16 256 wide, no bottleneck",
        _bottleneck_ffn(128, bfloat16, dropout_p=0.1, D=256, bottleneck=False),
    )
    for rows, dtype in ((64, bfloat16), (256, bfloat16), (256, float16), (64, float32)):
        yield f"bottleneck_input {rows} {str(dtype)[6:]}", _bottleneck_input(rows, dtype)
    for variant in ("from bottleneck", "no bottleneck"):
        yield f"bottleneck_input 256 bfloat16 {variant}", _bottleneck_input(256, bfloat16, variant, 1e-5)
    for K in (64, 128, 256):
        for name, dtype in DTYPES.items():
            yield f"block_sparse_attention {K} {name}", _block_sparse_attention(K, dtype)
    yield "block_sparse_attention 80 bfloat16", _block_sparse_attention(80, torch.bfloat16)
    yield "block_sparse_attention 32 bfloat16", _block_sparse_attention(32, torch.bfloat16)
    for name, dtype in list(DTYPES.items())[:2]:
        yield f"block_sparse_attention 64 {name} with all options", _block_sparse_attention(64, dtype, masked=True)
    small = _block_sparse_attention(64, torch.bfloat16, tokens=1001, block=16)
    yield "block_sparse_attention 64 bfloat16 in ragged blocks of 16", small


CASES.update(_cases())
