"""torch.compile in one graph, torch.export, and ONNX files that run elsewhere."""

import copy
import shutil
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch.export import Dim

import encoders_fast.models as ours
from encoders_fast._dispatch import record
from encoders_fast.models import inputs as input_checks
from encoders_fast.ops import fourier_mixing, fourier_mixing_layer_norm
from encoders_fast.ops.fourier_mixing import onnx
from tests.closeness import assert_as_good_as, relative_error
from tests.models.model_cases import MODELS, assert_outputs_as_good, batch, config, exact, pair, randomize, tensors

OP = torch.ops.encoders_fast.fourier_mixing_layer_norm.default


@pytest.fixture
def _compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(model, **options):
    return torch.compile(model, fullgraph=True, **options)


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("name", MODELS)
def test_one_graph(name):
    """aot_eager: everything of torch.compile but the generated code. Losses and gradients too."""
    _, model = pair(name)
    twin = copy.deepcopy(model).train()
    inputs = batch(name, model.config, labels="For" in name)
    compiled = _compiled(twin, backend="aot_eager")
    outputs = [each(**inputs, output_hidden_states=True) for each in (model.train(), compiled)]
    for (key, value), (_, expected) in zip(tensors(outputs[1]), tensors(outputs[0]), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4, msg=key)
    for output in outputs:
        (output.loss if "For" in name else output.last_hidden_state.square().mean()).backward()
    for (key, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or a torch without CUDA")
@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("Model")])
@torch.no_grad()
def test_graph_of_a_whole_model(name):
    """Captured once, replayed on other tokens, without waiting for the GPU."""
    _, model = pair(name)
    model = model.eval().cuda().half()
    inputs = {key: value.cuda() for key, value in batch(name, model.config).items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles the kernels and makes the plans
        for _ in range(2):
            model(**inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(**inputs).last_hidden_state
    inputs["input_ids"].copy_(inputs["input_ids"].flip(1))
    graph.replay()
    assert torch.equal(output, model(**inputs).last_hidden_state)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
@pytest.mark.usefixtures("_compiler")
def test_inductor():
    """Generated code, several lengths with one graph."""
    stock, model = pair("FNetModel", num_hidden_layers=1)
    compiled = _compiled(model, dynamic=True)
    with torch.no_grad():
        for B, T in ((2, 12), (3, 20), (2, 33)):
            inputs = batch("FNetModel", model.config, B=B, T=T)
            with record() as calls:
                output = compiled(**inputs)
            assert [op for op, _ in calls].count("fourier_mixing_layer_norm") == model.config.num_hidden_layers
            plain, right = (each(**inputs).last_hidden_state for each in (stock, exact(stock)))
            assert_as_good_as(output.last_hidden_state, plain, right)


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_graph_in_half_precision(dtype):
    stock, _ = pair("FNetForMaskedLM")
    _, model = pair("FNetForMaskedLM", dtype)
    inputs = batch("FNetForMaskedLM", model.config)
    compiled = _compiled(model, backend="aot_eager")
    with torch.no_grad():
        assert_as_good_as(compiled(**inputs).logits, model(**inputs).logits, exact(stock)(**inputs).logits)


@pytest.mark.usefixtures("_compiler")
def test_compiled_model_warns_of_a_mask(monkeypatch):
    monkeypatch.setattr(input_checks, "_warned", set())
    model = ours.FNetModel(config("FNetModel")).eval()
    compiled = _compiled(model, backend="eager")
    inputs = batch("FNetModel", model.config)
    with pytest.warns(UserWarning, match="FNet mixes all tokens"):
        compiled(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))


def _dynamic(inputs):
    """Every batch and length; for several choices every batch (torch 2.11 cannot see that min(T, 3 T) is T)."""
    B, T = Dim("B", min=1, max=64), Dim("T", min=1, max=64)
    return {name: {0: B, 1: T} if value.dim() == 2 else {0: B} for name, value in inputs.items()}


@pytest.mark.parametrize("name", ["FNetForPreTraining", "FNetForMultipleChoice", "FNetForQuestionAnswering"])
def test_export(name):
    """One node per layer, in a program for more than the example's batch and length."""
    _, model = pair(name)
    inputs = batch(name, model.config)
    program = torch.export.export(model, (), inputs, dynamic_shapes=_dynamic(inputs))
    assert [node.target for node in program.graph.nodes].count(OP) == model.config.num_hidden_layers
    for B, T in ((2, 12), (3, 7), (1, 64)):
        inputs = batch(name, model.config, B=B, T=12 if "MultipleChoice" in name else T)
        with torch.no_grad():
            for (key, value), (_, expected) in zip(
                tensors(program.module()(**inputs)), tensors(model(**inputs)), strict=True
            ):
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, msg=key)


def _onnx(model, inputs, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of things it deprecates in itself
        program = torch.onnx.export(model, (), kwargs=inputs, dynamo=True, verbose=False, **options)
    program.save(path)
    return program


def _run(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, feed)]


def test_onnx(tmp_path):
    """Standard operators only, any batch and length, float32's precision."""
    name = "FNetForPreTraining"
    stock, model = pair(name)
    inputs = batch(name, model.config)
    program = _onnx(model, inputs, tmp_path / "model.onnx", dynamic_shapes=_dynamic(inputs))
    nodes = list(program.model.graph)
    assert {node.domain for node in nodes} == {""}
    assert not {node.op_type for node in nodes} & {"DFT", "STFT"}
    # The matrices of the dynamic length are computed once, not once a layer.
    assert [node.op_type for node in nodes].count("Cos") == 1
    for B, T in ((2, 12), (3, 7), (1, 1), (1, 64)):
        inputs = batch(name, model.config, B=B, T=T)
        with torch.no_grad():
            plain, right = stock(**inputs), exact(stock)(**inputs)
        values = dict(zip(plain, _run(tmp_path / "model.onnx", inputs), strict=True))
        # Matrix products sum T and D terms in a row where an FFT sums log T.
        assert_outputs_as_good(values, plain, right, factor=4)


def test_onnx_keeps_precision_at_long_lengths(tmp_path):
    """The products j k of a long transform reach 10^7: angles made of them in float32 would be wrong in the third
    digit. An odd width too, and the exported program instead of the model."""
    options = {"hidden_size": 31, "max_position_embeddings": 3001, "num_hidden_layers": 1}
    model = ours.FNetModel(config("FNetModel", **options)).eval()
    randomize(model)
    inputs = {"input_ids": torch.randint(0, 99, (1, 3001))}
    program = torch.export.export(model, (), inputs, dynamic_shapes={"input_ids": {1: Dim("T", min=1, max=3001)}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    with torch.no_grad():
        right = copy.deepcopy(model).double()(**inputs).last_hidden_state
    assert relative_error(_run(tmp_path / "model.onnx", inputs)[0], right) < 3e-6


@pytest.mark.parametrize("norm", ["backward", "ortho"])
def test_onnx_of_the_ops_alone(norm, tmp_path):
    class Both(torch.nn.Module):
        def forward(self, x):
            return fourier_mixing(x, norm), fourier_mixing_layer_norm(x, weight, bias, 1e-5, norm)

    weight, bias = torch.randn(9), torch.randn(9)
    x = torch.randn(2, 5, 9)
    _onnx(Both(), {"x": x}, tmp_path / "model.onnx", dynamic_shapes={"x": {0: Dim("B"), 1: Dim("T")}})
    for shape in ((2, 5, 9), (3, 8, 9), (1, 1, 9)):
        x = torch.randn(shape)
        values = _run(tmp_path / "model.onnx", {"x": x})
        mixed = fourier_mixing(x.double(), norm)
        normalized = fourier_mixing_layer_norm(x.double(), weight.double(), bias.double(), 1e-5, norm)
        for value, right in zip(values, (mixed, normalized), strict=True):
            assert relative_error(value, right) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_onnx_form_in_half_precision(dtype):
    """Not every runtime has bfloat16, so the form itself is compared, as torch runs it."""
    for B, T, D in ((2, 5, 8), (1, 1, 1), (3, 8, 5), (2, 3, 2)):
        x, weight, bias = torch.randn(B, T, D).to(dtype), torch.randn(D).to(dtype), torch.randn(D).to(dtype)
        for norm in ("backward", "ortho"):
            mixed = onnx.fourier_mixing(x, norm, None)
            assert mixed.dtype == dtype
            assert relative_error(mixed, fourier_mixing(x.double(), norm)) < torch.finfo(dtype).eps
            if D < 3:
                continue  # a LayerNorm over one or two numbers only knows their order
            y, normalized, rstd = onnx.fourier_mixing_layer_norm(x, weight, bias, 1e-12, norm, True, None)
            right = fourier_mixing_layer_norm(x.double(), weight.double(), bias.double(), 1e-12, norm)
            assert relative_error(y, right) < torch.finfo(dtype).eps
            s = x.double() + fourier_mixing(x.double(), norm)
            torch.testing.assert_close(rstd.double(), (s.var(-1, unbiased=False) + 1e-12).rsqrt(), rtol=1e-5, atol=0)
            assert normalized.dtype == dtype
