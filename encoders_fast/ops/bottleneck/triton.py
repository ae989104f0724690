"""bottleneck_input and bottleneck_ffn in Triton: one kernel each, whose programs take a tile of rows all the way.

Matrices are passed as tuples of pointers, and loops over them are unrolled: a table of addresses in the GPU's memory
would have to be copied there, and packed weights to be watched for changes.

Backward, the forward kernel runs again and writes down what the gradients need, so that it decides about each ReLU as
it did before. A second kernel goes back through the same tiles, and writes the gradients of the activations, of each
product's output, and a tile's share of those of biases and norms. Then come products over all rows.

Counted for the published model in bfloat16 on an H200, not measured: with 1 x 128 tokens, 8 tiles of 16 rows, a
program of bottleneck_ffn reads 1.2 MB of weights from the L2 cache, at some 110 GB/s for a multiprocessor 11 us, which
limits it; the longest of bottleneck_input reads 192 KB. With 32 x 128 tokens, 128 tiles of 32 rows, 154 MB of weights
take 28 us at 5.5 TB/s, and their 5 GFLOP 10 us at half of what tensor cores can do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._dropout import scale
from .._triton import launch, multiprocessors, precision
from . import triton_ffn, triton_gradients, triton_input
from .parameters import Parameters
from .reference import Gradients

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _operands(dtype: torch.dtype, matrices: torch.dtype) -> dict[str, Any]:
    """The dtype of all products' factors: the activations', but bfloat16 beside bfloat16 matrices."""
    operand = matrices if matrices == torch.bfloat16 else dtype
    return {"OPERAND": _DTYPES[operand], "PRECISION": precision(operand)}


def _tile(rows: int, D: int, device: torch.device, operand: Any) -> dict[str, int]:
    """Rows of a program: as few as it takes to have all multiprocessors work, since each reads all weights.

    u [BLOCK_M, BLOCK_D] and a chunk of the hidden layer [BLOCK_M, CHUNK], in float32, stay in registers; two chunks of
    weights, in as many stages as there are, fit the 99 KB of shared memory that the smallest of these GPUs have.
    """
    BLOCK_D = max(triton.next_power_of_2(D), 16)
    # Three TF32 products of [32, 128] spill: their factors are there twice, as upper and as lower halves.
    largest = 16 if operand == tl.float32 else 32 if BLOCK_D > 128 else 64
    available = multiprocessors(device)
    BLOCK_M = next((each for each in (16, 32) if triton.cdiv(rows, each) <= available), 64)
    BLOCK_M = min(BLOCK_M, largest)
    tile = {"BLOCK_M": BLOCK_M, "BLOCK_D": BLOCK_D, "CHUNK": 64 if largest == 64 else 32}
    many = BLOCK_M * BLOCK_D > 32 * 128  # as many as make 4 warps spill
    return tile | {"num_warps": 8 if many else 4, "num_stages": 2 if many or BLOCK_D > 128 else 3}


def _rows(tensor: Tensor) -> Tensor:
    """[rows, D] with neighbouring elements in a row; a copy only where strides leave no other way."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _dense(parameters: Parameters) -> tuple[tuple[Tensor, ...], ...]:
    return tuple(tuple(tensor.contiguous() for tensor in part) for part in parameters[:3])


class _Product(NamedTuple):
    """One product of the forward pass, or as many alike as there are feed-forward blocks."""

    dy: Tensor
    """[groups, rows, N]"""
    x: Tensor
    """[groups, rows, K]"""
    first: int
    """Where the first gradient starts among all matrices' gradients."""
    between: int = 0
    """How far it is from one to the next."""
    activation: str | None = None
    """Applied to x."""


def _matrix_gradients(products: list[_Product], like: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """A part is at least 512 rows: a matrix is written and read again for each."""
    device, rows = like[0].device, products[0].x.shape[1]
    parts = min(max(rows // 512, 1), 16)
    rows_of_part = triton.cdiv(triton.cdiv(rows, parts), 32) * 32
    total = sum(matrix.numel() for matrix in like)
    sums = torch.empty((parts, total), dtype=torch.float32, device=device)
    for dy, x, first, between, activation in products:
        N, K = dy.shape[2], x.shape[2]
        launch(
            device,
            triton_gradients.of_matrices,
            [triton.cdiv(N, 64) * triton.cdiv(K, 64), len(dy), parts],
            *(dy, x, sums[:, first:], rows, rows_of_part),
            *(dy.stride(1), x.stride(1), dy.stride(0), x.stride(0), between, total),
            N=N,
            K=K,
            ACTIVATION=activation,
            **options,
            **{"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        )
    return _added_up(sums, like)


def _added_up(sums: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The sum over the first dimension, cut into tensors like these."""
    parts, total = sums.shape
    result = torch.empty(total, dtype=like[0].dtype, device=sums.device)
    # Few long columns are cut for more programs than many short ones.
    tile = {"COLUMNS": 1024, "PARTS": 4} if total >= 2**16 else {"COLUMNS": 64, "PARTS": 16}
    grid = [triton.cdiv(total, tile["COLUMNS"])]
    launch(sums.device, triton_gradients.add_up, grid, sums, result, total, parts, **tile, num_warps=4)
    pieces, start = [], 0
    for tensor in like:
        piece = result[start : start + tensor.numel()].view(tensor.shape)
        # What a compiler makes of the gradients reads sixteen bytes at a time.
        pieces.append(piece if start * result.element_size() % 16 == 0 else piece.clone())
        start += tensor.numel()
    return pieces


def _group(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


# ---- bottleneck_input


class _Input:
    """One call: its rows, its sizes, and what its forward kernel leaves."""

    def __init__(self, h: Tensor, parameters: Parameters, from_bottleneck: bool) -> None:
        matrices, _, _, eps = parameters
        self.h, self.shape, self.parameters = _rows(h), h.shape[:-1], parameters
        self.rows, self.H = self.h.shape
        self.outputs = tuple(len(matrix) for matrix in matrices[:3])
        self.widths = tuple(len(matrix) for matrix in matrices[3:])
        self.of_narrow = 3 if from_bottleneck else 2 if len(eps) == 2 else 0
        options = _operands(h.dtype, matrices[0].dtype)
        self.products = options
        self.constants = {
            **{"H": self.H, "WIDTHS": self.widths, "OUTPUTS": self.outputs, "EPS": tuple(eps)},
            **{"BOTTLENECKS": len(eps), "OF_NARROW": self.of_narrow},
            **options,
            **_tile(self.rows, max(self.widths, default=128), h.device, options["OPERAND"]),
        }
        self.programs = triton.cdiv(self.rows, self.constants["BLOCK_M"])
        self.matrices, self.biases, self.norms = _dense(parameters)

    def empty(self, width: int) -> Tensor:
        return self.h.new_empty((self.rows, width))

    def forward(self, saves: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """q, k and v; u0, which is empty without a bottleneck."""
        outputs = tuple(self.h.new_empty((*self.shape, width)) for width in self.outputs)
        u0 = self.h.new_empty((*self.shape, self.widths[0]) if self.widths else 0)
        self.narrow = (u0, *(self.empty(width) if saves else u0 for width in self.widths[1:]))
        self.normals = tuple(self.empty(width) if saves else u0 for width in self.widths)
        self.inverses = tuple(self.h.new_empty(self.rows, dtype=torch.float32) if saves else u0 for _ in self.widths)
        launch(
            self.h.device,
            triton_input.forward,
            [self.programs, len(self.widths) + 3 - self.of_narrow],
            *(self.h, self.matrices, self.biases, self.norms, outputs),
            *(self.narrow, self.normals, self.inverses, self.rows, self.h.stride(0)),
            SAVES=saves,
            **self.constants,
        )
        return outputs, u0


def bottleneck_input(h: Tensor, parameters: Parameters, from_bottleneck: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (q, k, v), u0 = _Input(h, parameters, from_bottleneck).forward(saves=False)
    return q, k, v, u0


def bottleneck_input_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    du0: Tensor,
    h: Tensor,
    parameters: Parameters,
    from_bottleneck: bool,
    wanted: bool,
) -> tuple[Tensor, Gradients]:
    call = _Input(h, parameters, from_bottleneck)
    if call.widths:
        call.forward(saves=True)
    doutputs, du0 = tuple(_rows(dy) for dy in (dq, dk, dv)), _rows(du0) if call.widths else du0
    dh = h.new_empty(h.shape)
    vectors = parameters.biases + parameters.norms
    lengths = sum(tensor.numel() for tensor in vectors) if wanted else 0
    sums = h.new_empty((call.programs, lengths), dtype=torch.float32)
    dnarrow = tuple(call.empty(width if wanted else 0) for width in call.widths)
    saved = (call.normals, call.inverses) if call.widths else ((), ())
    launch(
        h.device,
        triton_input.backward,
        [call.programs],
        *(doutputs, tuple(dy.stride(0) for dy in doutputs), du0, du0.stride(0), call.matrices, call.norms, *saved),
        *(dh, dnarrow, sums, call.rows),
        WANTED=wanted,
        VECTORS=lengths,
        **call.constants,
    )
    if not wanted:
        return dh, Gradients([], [], [])
    products, start = [], 0
    for i, (dy, matrix) in enumerate(zip((*doutputs, *dnarrow), call.matrices, strict=True)):
        x = _rows(call.narrow[-1]) if i < call.of_narrow else call.h
        products.append(_Product(_group(dy), _group(x), start))
        start += matrix.numel()
    matrices, found = _matrix_gradients(products, parameters.matrices, call.products), _added_up(sums, vectors)
    return dh, Gradients(matrices, found[: len(matrices)], found[len(matrices) :])


# ---- bottleneck_ffn


class _FeedForward:
    """One call: its rows, its sizes, and what its forward kernel leaves."""

    def __init__(
        self,
        attention: Tensor,
        u0: Tensor,
        h: Tensor | None,
        parameters: Parameters,
        activation: str,
        dropout_p: float,
        rng_state: Tensor | None,
    ) -> None:
        matrices, _, _, eps = parameters
        self.attention, self.u0, self.h = _rows(attention), _rows(u0), None if h is None else _rows(h)
        self.like, self.activation = u0 if h is None else h, activation
        self.rows, self.D = self.u0.shape
        self.H, self.A, self.F = 0 if h is None else h.shape[-1], attention.shape[-1], len(matrices[1])
        self.blocks, self.drops = len(matrices) // 2 - (h is not None), dropout_p > 0 and rng_state is not None
        self.products = _operands(u0.dtype, matrices[0].dtype)
        self.rng_state = rng_state.contiguous() if self.drops and rng_state is not None else None
        self.dropout = round(dropout_p * 2**32), scale(dropout_p)
        self.constants = {
            **{"H": self.H, "D": self.D, "A": self.A, "F": self.F, "BLOCKS": self.blocks, "EPS": tuple(eps)},
            **{"ACTIVATION": activation, "DROPS": self.drops, "WIDE": h is not None},
            **self.products,
            **_tile(self.rows, self.D, u0.device, self.products["OPERAND"]),
        }
        self.programs = triton.cdiv(self.rows, self.constants["BLOCK_M"])
        self.matrices, self.biases, self.norms = _dense(parameters)

    def empty(self, *shape: int) -> Tensor:
        return self.u0.new_empty(shape)

    def forward(self, saves: bool) -> Tensor:
        y = self.like.new_empty(self.like.shape)
        self.streams, self.befores, self.normals, self.inverses = None, None, None, None
        if saves:
            norms = self.blocks + 1
            self.streams = self.empty(norms, self.rows, self.D)
            self.befores = self.empty(self.blocks, self.rows, self.F)
            wide = () if self.h is None else (self.empty(self.rows, self.H),)
            self.normals = (*self.empty(norms, self.rows, self.D).unbind(), *wide)
            inverses = self.u0.new_empty((norms + len(wide), self.rows), dtype=torch.float32)
            self.inverses = inverses.unbind()
        h_step = 0 if self.h is None else self.h.stride(0)
        launch(
            self.u0.device,
            triton_ffn.forward,
            [self.programs],
            *(self.attention, self.u0, self.h, self.matrices, self.biases, self.norms, self.rng_state, y),
            *(_unbound(self.streams), _unbound(self.befores), self.normals, self.inverses),
            *(self.rows, self.attention.stride(0), self.u0.stride(0), h_step, *self.dropout),
            SAVES=saves,
            **self.constants,
        )
        return y


def _unbound(tensor: Tensor | None) -> tuple[Tensor, ...] | None:
    return None if tensor is None else tensor.unbind()


def bottleneck_ffn(
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    parameters: Parameters,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
) -> Tensor:
    return _FeedForward(attention, u0, h, parameters, activation, dropout_p, rng_state).forward(saves=False)


def bottleneck_ffn_backward(
    dy: Tensor,
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    parameters: Parameters,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Gradients]:
    call = _FeedForward(attention, u0, h, parameters, activation, dropout_p, rng_state)
    call.forward(saves=True)
    dattention, du0 = attention.new_empty(attention.shape), u0.new_empty(u0.shape)
    dh = None if h is None else h.new_empty(h.shape)
    # What is in front of a dropout has another gradient than the sum behind it.
    dout = call.empty(call.rows, call.H) if wanted and call.drops and h is not None else dh
    dattended = call.empty(call.rows, call.D) if wanted and call.drops and h is None else du0
    rows = call.rows if wanted else 0
    dexpands, dcontracts = call.empty(call.blocks, rows, call.F), call.empty(call.blocks, rows, call.D)
    vectors = parameters.biases + parameters.norms
    lengths = sum(tensor.numel() for tensor in vectors) if wanted else 0
    sums = u0.new_empty((call.programs, lengths), dtype=torch.float32)
    dy = _rows(dy)
    launch(
        u0.device,
        triton_ffn.backward,
        [call.programs],
        *(dy, call.matrices, call.norms, call.rng_state, _unbound(call.befores), call.normals, call.inverses),
        *(dattention, du0, dh, dattended, dexpands.unbind(), dcontracts.unbind(), dout, sums),
        *(call.rows, dy.stride(0), *call.dropout),
        WANTED=wanted,
        VECTORS=lengths,
        **call.constants,
    )
    if not wanted:
        return dattention, du0, dh, Gradients([], [], [])
    products = _ffn_products(call, dattended, dexpands, dcontracts, dout)
    matrices, found = _matrix_gradients(products, parameters.matrices, call.products), _added_up(sums, vectors)
    return dattention, du0, dh, Gradients(matrices, found[: len(matrices)], found[len(matrices) :])


def _ffn_products(
    call: _FeedForward, dattended: Tensor, dexpands: Tensor, dcontracts: Tensor, dout: Tensor | None
) -> list[_Product]:
    assert call.streams is not None
    assert call.befores is not None
    of_output, of_block = call.D * call.A, 2 * call.D * call.F
    products = [
        _Product(_group(_rows(dattended)), _group(call.attention), 0),
        _Product(dexpands, call.streams[: call.blocks], of_output, of_block),
        _Product(dcontracts, call.befores, of_output + of_block // 2, of_block, call.activation),
    ]
    if dout is not None:
        products.append(_Product(_group(_rows(dout)), call.streams[call.blocks :], of_output + call.blocks * of_block))
    return products
