"""What is special in the backend `cpu`: its tiles, its sums in parts, and weights that are packed once."""

from __future__ import annotations

import pytest
import torch

from encoders_fast import _dispatch, explain, use_backend
from encoders_fast.ops import bottleneck_ffn, clear_packed, packed_bytes
from tests.closeness import assert_as_good_as, relative_error
from tests.ops.bottleneck_cases import (
    OPS,
    SMALL,
    Arguments,
    Sizes,
    ffn_arguments,
    input_arguments,
    plain_ffn,
)

REFUSAL = explain("bottleneck_ffn", *ffn_arguments().tensors).refusals.get("cpu")
pytestmark = pytest.mark.skipif(REFUSAL is not None, reason=str(REFUSAL))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every new tensor starts as NaN, and no test finds what another packed."""
    torch.use_deterministic_algorithms(True)
    clear_packed()
    yield
    torch.use_deterministic_algorithms(False)


def outputs_of(op: str, arguments: Arguments, dtype: torch.dtype, plain: bool = False) -> list[torch.Tensor]:
    made = arguments.with_leaves([t.to(dtype) for t in arguments.leaves()])
    found = OPS[op][plain](*made.tensors, **made.options)
    return list(found) if isinstance(found, tuple) else [found]


def check(op: str, arguments: Arguments, dtype: torch.dtype) -> None:
    made = arguments.with_leaves([t.to(dtype) for t in arguments.leaves()])
    if "cpu" in explain(op, *made.tensors, **made.options).refusals:
        pytest.skip("no brgemm of this type")
    with use_backend("cpu"):
        outputs = outputs_of(op, arguments, dtype)
    plain, exact = (outputs_of(op, arguments, kind, plain=True) for kind in (dtype, torch.float64))
    for y, same_dtype, right in zip(outputs, plain, exact, strict=True):
        assert_as_good_as(y, same_dtype, right)


# Tiles have 16, 32 and 64 rows: one of each, one row more and less, and several of them.
ROWS = [1, 15, 16, 17, 32, 33, 48, 49, 63, 64, 65, 113, 177]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_borders_of_tiles(rows, dtype):
    sizes = Sizes((rows,), 70, 33, 65, 64, 2)  # one panel of 64 columns, two, and a part of one
    check("bottleneck_input", input_arguments(sizes), dtype)
    check("bottleneck_ffn", ffn_arguments(sizes, activation="silu"), dtype)


@pytest.mark.parametrize(("H", "dtype"), [(127, torch.float32), (129, torch.float32), (300, torch.float32),
                                          (2049, torch.bfloat16), (4099, torch.bfloat16)], ids=str)  # fmt: skip
def test_sums_in_parts(H, dtype):
    """Above 128 terms in float32, and above 2048 in bfloat16."""
    for eps in (None, 1e-3):
        check("bottleneck_input", input_arguments(Sizes((18,), H, 10, 10, 1, 1), eps=eps), dtype)
        check("bottleneck_input", input_arguments(Sizes((18,), H, 10, 10, 1, 1), "from bottleneck", eps), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_for_any_number_of_threads(op, dtype):
    arguments = OPS[op][2](Sizes((3, 67), 130, 66, 66, 200, 2))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_of(op, arguments, dtype))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_bfloat16_is_rounded_where_it_is_multiplied_alone():
    """The stream between blocks is float32: over many of them, plain bfloat16 loses more."""
    arguments = ffn_arguments(Sizes((64,), 64, 32, 32, 64, 12), activation="gelu")
    made = arguments.with_leaves([t.bfloat16() for t in arguments.leaves()])
    if "cpu" in explain("bottleneck_ffn", *made.tensors, **made.options).refusals:
        pytest.skip("no brgemm in bfloat16")
    exact = made.with_leaves([t.double() for t in made.leaves()])
    right, plain = plain_ffn(*exact.tensors, **exact.options), plain_ffn(*made.tensors, **made.options)
    ours = bottleneck_ffn(*made.tensors, **made.options)
    assert relative_error(ours, right) < 0.9 * relative_error(plain, right)


def test_weights_are_packed_once_until_one_changes():
    for function, plain, make in OPS.values():
        clear_packed()
        arguments = make(SMALL._replace(rows=(20,)))

        def right(arguments=arguments, function=function, plain=plain):
            y, expected = (of(*arguments.tensors, **arguments.options) for of in (function, plain))
            y, expected = (t if isinstance(t, tuple) else (t,) for t in (y, expected))
            for one, other in zip(y, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

        with torch.no_grad(), use_backend("cpu"):
            right()
            once = packed_bytes()
            assert once > 0
            for tensor in arguments.leaves():  # biases and norms are not packed, and are heeded all the same
                tensor.add_(0.1)
                right()
            for tensor in arguments.leaves():
                tensor.data = tensor.data * 0.9
            right()
            assert packed_bytes() == once
            with torch.inference_mode():
                right()
                inside = arguments.with_leaves([t + 0 for t in arguments.leaves()])
                right(inside)
                for tensor in inside.leaves():
                    tensor.mul_(1.1)
                right(inside)
            assert packed_bytes() == once


@pytest.mark.parametrize("how", ["foreach", "fused"])
def test_optimizers_are_heeded(how):
    arguments = ffn_arguments()
    leaves = [t.requires_grad_() for t in arguments.leaves()]
    optimizer = torch.optim.AdamW(leaves, lr=0.1, **{how: True})
    with use_backend("cpu"):
        for _ in range(2):
            y = bottleneck_ffn(*arguments.tensors, **arguments.options)
            expected = plain_ffn(*arguments.tensors, **arguments.options)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
            optimizer.zero_grad()
            y.square().mean().backward()
            optimizer.step()


def test_sentences():
    arguments = ffn_arguments()
    attention, u0, h, output, (first, second), out = arguments.tensors
    narrow = (type(first[0])(first[0].weight[:3], first[0].bias[:3]), first[1]._replace(weight=first[1].weight[:, :3]))
    with _dispatch.record() as calls:
        bottleneck_ffn(attention, u0, h, output, [narrow, second], out)
    assert calls == [("bottleneck_ffn", "reference")]
    refusal = explain("bottleneck_ffn", attention, u0, h, output, [narrow, second], out).refusals["cpu"]
    assert refusal == "takes feed-forward blocks of one width; these differ"
    half = arguments.with_leaves([t.half() for t in arguments.leaves()])
    assert "float16" in explain("bottleneck_ffn", *half.tensors).refusals["cpu"]
