"""Dropout's random numbers: a function of a state and an element's index, the same on every backend.

A state is an int64 tensor [2] (seed, offset) on the device of what is dropped. It is drawn once per forward pass with
torch's own generator; every place that drops something derives its own from it by `at`. Philox4x32-10 turns a state
and an index into 32 random bits: element i has word i % 4 of the block with

    counter (i // 4 low, i // 4 high, offset low, offset high),   key (seed low, seed high)

and is kept where that word is at least round(p * 2**32). A mask is never stored, a backward pass computes it again,
and a CUDA graph that is replayed draws a new state. No function here waits for the device.

Source: Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011), section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SITES = 16
"""Places in one layer that may drop something: offsets of neighbouring layers are this far apart."""

_MASK = 0xFFFFFFFF
# The two multipliers less 2**32: a product with a 32-bit word then fits int64, and only its upper half is changed.
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Temporaries of 512 KiB, a handful of them at a time: small beside any activation, and large enough for torch to give
# every core a share.
_BLOCKS_AT_A_TIME = 64 * 1024


def draw(device: torch.device | str) -> Tensor:
    """A new state, from torch's default generator of `device`."""
    return torch.randint(2**63 - 1, (2,), dtype=torch.int64, device=device)


def at(rng_state: Tensor, layer: int, site: int) -> Tensor:
    """The state of one place in a model: `rng_state` with layer * SITES + site added to its offset, modulo 2**64.

    Raises ValueError for a negative layer and for a site that is not below SITES.
    """
    if layer < 0 or not 0 <= site < SITES:
        raise ValueError(f"layer must not be negative and site must be in [0, {SITES}); they are {layer} and {site}")
    # Not a tensor of these two numbers: copying one to a GPU would wait for it.
    second = torch.arange(2, device=rng_state.device)
    return torch.add(rng_state, second, alpha=layer * SITES + site)


def check_rng_state(rng_state: Tensor, device: torch.device) -> None:
    """Raises TypeError or ValueError, in a sentence, for what is not a state on `device`."""
    if not isinstance(rng_state, Tensor):
        raise TypeError(f"rng_state must be a tensor; it is {type(rng_state).__name__}")
    if rng_state.dtype != torch.int64:
        raise TypeError(f"rng_state must be int64; it is {rng_state.dtype}")
    if rng_state.shape != (2,):
        raise ValueError(f"rng_state must be [2], seed and offset; its shape is {tuple(rng_state.shape)}")
    if rng_state.device != device:
        raise ValueError(f"rng_state is on {rng_state.device}, the input is on {device}")


def check_probability(probability: float, name: str = "dropout_p") -> None:
    """Raises TypeError for what is not a number, ValueError for one outside of [0, 1]."""
    if not isinstance(probability, (int, float)):
        raise TypeError(f"{name} must be a number; it is {probability!r}")
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} must be in [0, 1]; it is {probability}")


def check(probability: float, rng_state: Tensor | None, device: torch.device, name: str = "dropout_p") -> None:
    """What an op with a dropout checks: the probability, and the state, which may be None without dropout only."""
    check_probability(probability, name)
    if rng_state is not None:
        check_rng_state(rng_state, device)
    elif probability > 0:
        raise ValueError(f"{name} is {probability}, so rng_state is needed; it is None")


def keep(rng_state: Tensor, shape: Sequence[int], probability: float, first_element: int = 0) -> Tensor:
    """The mask of a whole tensor: bool, `shape`, True where an element is kept.

    Element i in row-major order has the number first_element + i: a part of a tensor has that part of its mask.
    """
    check_probability(probability, "probability")
    elements: Any = math.prod(shape)  # a symbol where sizes are
    if probability == 0 or elements == 0:
        return torch.ones(tuple(shape), dtype=torch.bool, device=rng_state.device)
    begin, end = first_element // 4, (first_element + elements + 3) // 4
    if torch.compiler.is_compiling() or isinstance(elements, torch.SymInt):  # a compiler makes one loop of it all
        parts = [_kept(rng_state, torch.arange(begin, end, device=rng_state.device), probability).flatten()]
    else:
        parts = []
        for first in range(begin, end, _BLOCKS_AT_A_TIME):
            blocks = torch.arange(first, min(first + _BLOCKS_AT_A_TIME, end), device=rng_state.device)
            parts.append(_kept(rng_state, blocks, probability).flatten())
    mask = parts[0] if len(parts) == 1 else torch.cat(parts)
    return mask.narrow(0, first_element % 4, elements).view(tuple(shape))


def keep_elements(rng_state: Tensor, elements: Tensor, probability: float) -> Tensor:
    """The mask at given element numbers, int64 of any shape: for tensors that are never built as a whole."""
    check_probability(probability, "probability")
    kept = _kept(rng_state, elements >> 2, probability)
    return kept.gather(-1, (elements & 3)[..., None]).squeeze(-1)


def dropout(x: Tensor, probability: float, rng_state: Tensor) -> Tensor:
    """x * keep(rng_state, x.shape, probability) * scale(probability).

    The scale is a float32 number (float64 for float64), and its product is rounded once to x's dtype.

    Args:
        x: any shape and floating dtype.
        probability: of an element to be dropped, in [0, 1].
        rng_state: int64 [2] on x's device.

    Returns: x's shape and dtype, differentiable in x. Raises ValueError and TypeError for another probability or state.
    """
    check(probability, rng_state, x.device, "probability")
    if probability == 0:
        return x
    # The mask first: what is dropped must not overflow float16 before.
    return x * keep(rng_state, x.shape, probability) * scale(probability)


def scale(probability: float) -> float:
    """What a kept element is multiplied by: 1 / (1 - probability), and 0 where none is kept."""
    return 1 / (1 - probability) if probability < 1 else 0.0


def _kept(rng_state: Tensor, blocks: Tensor, probability: float) -> Tensor:
    """For each of `blocks`, whether its four elements are kept: bool [..., 4]."""
    seed, offset = rng_state.unbind()
    counter = (blocks & _MASK, blocks >> 32, offset & _MASK, (offset >> 32) & _MASK)
    words = philox(counter, (seed & _MASK, (seed >> 32) & _MASK))
    threshold = round(probability * 2**32)
    return torch.stack([word >= threshold for word in words], dim=-1)


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random 32-bit words for a counter of four and a key of two, all of them int64 tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low0, high0 = _multiply(c0, _MULTIPLIERS[0])
        low1, high1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The lower and the upper half of word * (multiplier + 2**32). The shift rounds down, also below zero."""
    product = word * multiplier
    return product & _MASK, (product >> 32) + word
