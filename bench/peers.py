"""What a user would run the same model in instead: torch.compile, ONNX Runtime, OpenVINO.

Each is handed a model of transformers' and the token ids of a case, and gives its last hidden states. All run on as
many threads as torch does. They are imported where they are asked for, and none looks for a network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import clock
from encoders_fast.ops import BlockSparsePattern


class Peer(NamedTuple):
    """A way to compute the hidden states of one case."""

    call: Callable[..., Tensor]
    absent: str | None = None
    """The sentence why it cannot run."""


def torch_compile(model: nn.Module, ids: Tensor) -> Peer:
    """The model under torch.compile, in its default mode and compiled for these shapes."""

    def prepare() -> Callable[[], Tensor]:
        compiled = torch.compile(model)
        return lambda: compiled(ids).last_hidden_state

    return tried("torch.compile", prepare)


def compiled_on_gpus(function: Callable[..., Any]) -> Peer:
    """`function` under torch.compile, which on a GPU fuses what stands in it."""
    if clock.device().type == "cpu":
        return absent("torch.compile of single expressions is measured on GPUs")
    return Peer(torch.compile(function))


def flex_attention(pattern: BlockSparsePattern) -> Peer:
    """torch's compiled FlexAttention over the same blocks."""
    if clock.device().type == "cpu":
        return absent("FlexAttention is measured on GPUs")
    lists, block, tokens = pattern.lists, pattern.block, pattern.query_tokens
    if (lists.multiplicities > 1).any():
        return absent("FlexAttention does not know blocks that are listed several times, as in evaluation")
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    heads, rows = lists.row_starts.shape[0], lists.row_starts.shape[1] - 1
    seen = torch.zeros(heads * rows, rows, dtype=torch.bool)
    seen[torch.repeat_interleave(lists.row_starts.diff().flatten().long()), lists.columns.long()] = True
    seen = seen.view(heads, rows, rows).to(clock.device())

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return seen[h % heads, q // block, k // block]

    device = str(clock.device())
    mask = create_block_mask(
        visible, None, heads if heads > 1 else None, tokens, tokens, device=device, BLOCK_SIZE=block
    )
    options = {"BLOCK_M": block, "BLOCK_N": block}  # its own are larger than the mask's blocks
    return Peer(torch.compile(partial(flex, block_mask=mask, kernel_options=options)))


def onnx_runtime(model: nn.Module, ids: Tensor) -> Peer:
    """torch's ONNX export of the model for this one shape, in float32."""

    def prepare() -> Callable[[], Tensor]:
        import onnxruntime

        on_the_cpu(ids)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads would wait for more work on the cores of the contender whose turn is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            torch.onnx.export(LastHiddenState(model), (ids,), path, dynamo=True, external_data=True, verbose=False)
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: ids.numpy()}
        return lambda: torch.from_numpy(session.run(None, feed)[0])

    return tried("ONNX Runtime", prepare)


def openvino(model: nn.Module, ids: Tensor, dtype: torch.dtype) -> Peer:
    """OpenVINO's conversion of the float32 model for this one shape, computing in `dtype`, with one stream.

    Without the hint it would take bfloat16 wherever the processor has it.
    """

    def prepare() -> Callable[[], Tensor]:
        from openvino import Core, Type

        on_the_cpu(ids)
        precision = {torch.float32: Type.f32, torch.bfloat16: Type.bf16}[dtype]
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = Core().compile_model(_converted(model, ids), "CPU", settings)
        taken = compiled.get_property("INFERENCE_PRECISION_HINT")
        if taken != precision:
            raise RuntimeError(f"computes in {taken.to_string()} here, where {precision.to_string()} was asked for")
        request, array = compiled.create_infer_request(), ids.numpy()
        return lambda: torch.from_numpy(request.infer([array], share_inputs=True, share_outputs=True)[0])

    return tried("OpenVINO", prepare)


@lru_cache(maxsize=1)
def _converted(model: nn.Module, ids: Tensor) -> Any:
    """Kept for the next dtype: converting takes longer than a case's rounds. The weights are the model's own."""
    from openvino import convert_model

    return convert_model(LastHiddenState(model), example_input=ids, input=[tuple(ids.shape)])


def on_the_cpu(ids: Tensor) -> None:
    if ids.device.type != "cpu":
        raise NotImplementedError(f"is measured on the CPU only, not on {ids.device.type}")


class LastHiddenState(nn.Module):
    """A model whose only output is that tensor, as exporters like it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).last_hidden_state


def tried(name: str, prepare: Callable[[], Callable[[], Tensor]]) -> Peer:
    """What `prepare` gives, if it can be prepared and called; else why not."""
    try:
        with torch.no_grad():
            call = prepare()
        with torch.inference_mode():
            call()
    except ModuleNotFoundError as error:
        return absent(f"{name} is not installed ({error.name} is missing): `make peers` installs it")
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return absent(f"{name} failed: {lines[0]}")
    return Peer(call)


def absent(why: str) -> Peer:
    """One that cannot run."""

    def call() -> Tensor:
        raise RuntimeError(why)

    return Peer(call, why)
