"""One or a few calls of every op, at sizes of the models and at awkward ones, that run on any device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from encoders_fast.ops import (
    BlockSparsePattern,
    block_sparse_attention,
    fourier_mixing,
    fourier_mixing_layer_norm,
    residual_layer_norm,
)
from tests.ops.bottleneck_cases import OPS, Arguments, Sizes, ffn_arguments, input_arguments


class Call(NamedTuple):
    op: str
    inputs: list[Tensor]
    """In float32 on the CPU; all of them get gradients."""
    run: Callable[..., Sequence[Tensor]]
    """Of the same tensors in another dtype or on another device."""


def _there(tensor: Tensor) -> Callable[[torch.device], Tensor]:
    """Copied once to each device: a copy from the host is waited for, and no graph can capture it."""
    return functools.cache(lambda device: tensor.to(device))


def normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _mixing(shape: tuple[int, ...]) -> Call:
    return Call("fourier_mixing", normal(shape), lambda x: [fourier_mixing(x)])


def _mixing_layer_norm(shape: tuple[int, ...]) -> Call:
    inputs = normal(shape, shape[2:], shape[2:])
    return Call("fourier_mixing_layer_norm", inputs, lambda *args: [fourier_mixing_layer_norm(*args, eps=1e-5)])


def _residual(shape: tuple[int, ...], dropout_p: float = 0.0) -> Call:
    state = _there(torch.tensor([3, 2**33]))

    def run(*args: Tensor) -> Sequence[Tensor]:
        return residual_layer_norm(*args, 1e-5, dropout_p, state(args[0].device) if dropout_p else None)

    return Call("residual_layer_norm", normal(shape, shape, shape[-1:], shape[-1:]), run)


def _attention(pattern: BlockSparsePattern, H: int, K: int, masked: bool, **options: Any) -> Call:
    B, Tq, Tk = 2, pattern.query_tokens, pattern.key_tokens
    real, factors = torch.ones(B, Tk, dtype=torch.bool), torch.linspace(-1, 2, B * H).view(B, H)
    real[1, Tk // 2 :] = False
    seen, head_mask, state = _there(real), _there(factors), _there(torch.tensor([3, 4]))

    def run(*args: Tensor) -> Sequence[Tensor]:
        device = args[0].device
        more = options | ({"rng_state": state(device)} if "dropout_p" in options else {})
        if masked:
            more |= {"key_padding_mask": seen(device), "head_mask": head_mask(device)}
        return [block_sparse_attention(*args, pattern.to(device), **more)]

    return Call("block_sparse_attention", normal((B, H, Tq, K), (B, H, Tk, K), (B, H, Tk, K)), run)


def _bottleneck(op: str, arguments: Arguments) -> Call:
    given = arguments.options.get("rng_state")
    state = None if given is None else _there(given)

    def run(*leaves: Tensor) -> Sequence[Tensor]:
        made = arguments.with_leaves(list(leaves))
        options = made.options | ({} if state is None else {"rng_state": state(leaves[0].device)})
        outputs = OPS[op][0](*made.tensors, **options)
        return outputs if isinstance(outputs, tuple) else [outputs]

    return Call(op, arguments.leaves(), run)


MOBILE_BERT = Sizes((2, 40), 512, 128, 128, 512, 4)
ODD = Sizes((3, 5), 44, 20, 28, 36, 2)
CALLS = {
    "fourier_mixing (2, 128, 768)": _mixing((2, 128, 768)),
    "fourier_mixing (1, 509, 96)": _mixing((1, 509, 96)),
    "fourier_mixing_layer_norm (2, 512, 768)": _mixing_layer_norm((2, 512, 768)),
    "fourier_mixing_layer_norm (3, 33, 31)": _mixing_layer_norm((3, 33, 31)),
    "residual_layer_norm (4, 33, 768)": _residual((4, 33, 768)),
    "residual_layer_norm (3, 7, 2560) with dropout": _residual((3, 7, 2560), 0.1),
    "residual_layer_norm (5, 771) with dropout": _residual((5, 771), 0.6),
    "block_sparse_attention as BigBird": _attention(
        BlockSparsePattern.big_bird(1024, block=64, heads=3, random_blocks=3, layer=1, training=True), 3, 64, False
    ),
    "block_sparse_attention masked, dropped": _attention(
        BlockSparsePattern.big_bird(1024, block=64, heads=3, random_blocks=3, layer=1, training=False),
        *(3, 64, True),
        dropout_p=0.1,
    ),
    "block_sparse_attention causal": _attention(BlockSparsePattern.full(199, causal=True), 2, 80, True),
    "block_sparse_attention of small blocks": _attention(
        BlockSparsePattern.sliding(130, block=8, heads=2, window_blocks=5, random_blocks=3), 2, 24, True
    ),
    "bottleneck_input": _bottleneck("bottleneck_input", input_arguments(MOBILE_BERT)),
    "bottleneck_input, odd, LayerNorm": _bottleneck("bottleneck_input", input_arguments(ODD, "wide", 1e-5)),
    "bottleneck_ffn": _bottleneck("bottleneck_ffn", ffn_arguments(MOBILE_BERT)),
    "bottleneck_ffn, odd, LayerNorm": _bottleneck("bottleneck_ffn", ffn_arguments(ODD, 1e-5, "gelu", 0.2)),
}
