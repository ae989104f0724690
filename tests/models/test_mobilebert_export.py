"""torch.export of MobileBERT: two nodes per layer beside the attention's, in a program for any batch and length."""

import pytest
import torch
from torch.export import Dim

from tests.models.model_cases import batch, pair, tensors

OPS = [torch.ops.encoders_fast.bottleneck_input.default, torch.ops.encoders_fast.bottleneck_ffn.default]


@pytest.mark.parametrize("options", [{}, {"use_bottleneck": False, "normalization_type": "layer_norm"}], ids=str)
@pytest.mark.parametrize("name", ["MobileBertForPreTraining", "MobileBertForQuestionAnswering"])
def test_export(name, options):
    _, model = pair(name, **options)
    inputs = batch(name, model.config)
    B, T = Dim("B", min=1, max=64), Dim("T", min=1, max=64)
    program = torch.export.export(model, (), inputs, dynamic_shapes={key: {0: B, 1: T} for key in inputs})
    called = [node.target for node in program.graph.nodes]
    assert [called.count(op) for op in OPS] == [model.config.num_hidden_layers] * 2
    for sizes in ({"B": 2, "T": 12}, {"B": 3, "T": 7}, {"B": 1, "T": 64}):
        inputs = batch(name, model.config, **sizes)
        with torch.no_grad():
            for (key, value), (_, expected) in zip(
                tensors(program.module()(**inputs)), tensors(model(**inputs)), strict=True
            ):
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_graph_in_half_precision(dtype):
    """Training, with dropout: a compiled program draws the masks that the eager one draws."""
    options = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "attn_implementation": "encoders_fast"}
    name = "MobileBertForMaskedLM"
    _, model = pair(name, dtype, **options)
    inputs = batch(name, model.config, labels=True)
    model.train()
    torch._dynamo.reset()
    results = []
    for each in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        model.zero_grad()
        loss = each(**inputs).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for compiled, eager in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=2e-2, atol=2e-2)
    torch._dynamo.reset()
