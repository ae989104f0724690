"""Every op on a GPU: each backend that runs there against float64 on the CPU, in graphs, on streams and devices.

The same calls run on the CPU too, so that a machine without a GPU finds what is wrong with these tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from encoders_fast import _dispatch, use_backend
from encoders_fast.ops import residual_layer_norm
from tests.closeness import assert_as_good_as
from tests.ops.bottleneck_cases import assert_together_as_good_as
from tests.ops.device_calls import CALLS, Call

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or a torch without CUDA"),
    ],
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PAIRS = [(name, row.name) for name, call in CALLS.items() for row in _dispatch.tables()[call.op]]


def inputs_on(call: Call, device: str, dtype: torch.dtype) -> list[Tensor]:
    return [x.to(device, dtype, copy=True).requires_grad_() for x in call.inputs]


def forward_and_backward(call: Call, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    outputs = call.run(*inputs)
    generator = torch.Generator().manual_seed(7)
    dys = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    return list(outputs), list(torch.autograd.grad(outputs, inputs, dys))


def chosen(call: Call, inputs: Sequence[Tensor]) -> str:
    """The backend that takes the call; skips where the one that is asked for does not."""
    with _dispatch.record() as calls:
        try:
            call.run(*inputs)
        except NotImplementedError as refusal:
            pytest.skip(str(refusal).splitlines()[0])
    (_, backend), *_ = calls
    return backend


def check(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    call = CALLS[name]
    inputs = inputs_on(call, device, dtype)
    with use_backend(backend):
        assert chosen(call, inputs) == backend
        outputs, gradients = forward_and_backward(call, inputs)
    with use_backend("reference"):
        plain = forward_and_backward(call, inputs_on(call, "cpu", dtype))
        exact = forward_and_backward(call, inputs_on(call, "cpu", torch.float64))
    for ours, same_dtype, right in zip(outputs, plain[0], exact[0], strict=True):
        assert_as_good_as(ours.detach().cpu(), same_dtype.detach(), right.detach())
    assert_together_as_good_as([x.cpu() for x in gradients], plain[1], exact[1])


@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_on_the_cpu(name, backend):
    check(name, backend, torch.float32, "cpu")


on_gpu = pytest.mark.parametrize("device", [GPU])


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "backend"), [pair for pair in PAIRS if pair[1] != "cpu"])
def test_on_the_gpu(name, backend, dtype, device):
    check(name, backend, dtype, device)


@on_gpu
@pytest.mark.parametrize("name", CALLS)
def test_graph(name, device):
    """Captured once, replayed on other numbers, without a look at them on the host."""
    call = CALLS[name]
    inputs = inputs_on(call, device, torch.float16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):  # compiles the kernels and makes the plans
        for _ in range(2):
            call.run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        outputs = call.run(*inputs)
    with torch.no_grad():
        for x in inputs:
            x.mul_(0.5)
        graph.replay()
        again = call.run(*inputs)
    assert all(torch.equal(one, other) for one, other in zip(outputs, again, strict=True))


@on_gpu
@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_gpu(name, device):
    call = CALLS[name]
    inputs = inputs_on(call, device, torch.bfloat16)
    outputs = call.run(*inputs)
    gradients = [torch.ones_like(y) for y in outputs]
    torch.autograd.grad(outputs, inputs, gradients)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.autograd.grad(call.run(*inputs), inputs, gradients)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@on_gpu
@pytest.mark.parametrize("name", CALLS)
def test_another_device(name, device):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU only")
    call = CALLS[name]
    one, other = (call.run(*inputs_on(call, f"{device}:{i}", torch.float16)) for i in (0, 1))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, other, strict=True))


@on_gpu
def test_more_elements_than_32_bits_count(device):
    rows, D = 2**31 // 1024 + 3, 1024
    x = torch.zeros(rows, D, dtype=torch.float16, device=device)
    x[-3:] = torch.randn(3, D, device=device)
    residual, weight, bias = torch.zeros_like(x[:1]).expand(rows, D), x[-1].clone(), x[-2].clone()
    y, s = residual_layer_norm(x, residual, weight, bias)
    few, _ = residual_layer_norm(x[-3:], residual[-3:], weight, bias)
    assert torch.equal(s[-3:], x[-3:])
    assert torch.equal(y[-3:], few)
