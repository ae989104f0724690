"""Which backend each of BigBird's layers ran on, also when compiled; and that memory grows with the length alone."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import encoders_fast
import encoders_fast.models as ours
from encoders_fast import BlockSparsePattern, _dispatch
from encoders_fast._dispatch import record
from tests.models.model_cases import batch, config, pair
from tests.models.test_big_bird import BLOCKS_OF_4, BLOCKS_OF_16

ATTENTION, NORM = "block_sparse_attention", "residual_layer_norm"
T = 40


def _explained(dtype):
    """What the tables say for a model on this machine, asked for without running it."""
    x, weight = torch.empty(2, T, 32, dtype=dtype), torch.empty(32, dtype=dtype)
    q = torch.empty(2, 4, T, 8, dtype=dtype)
    pattern = BlockSparsePattern.big_bird(T, block=4, heads=4, random_blocks=1)
    return {
        ATTENTION: encoders_fast.explain(ATTENTION, q, q, q, pattern),
        NORM: encoders_fast.explain(NORM, x, x, weight, weight),
    }


def _own(calls):
    return [call for call in calls if call[0] in (ATTENTION, NORM)]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_backend_of_each_layer(dtype, train):
    """One attention over blocks and two residual LayerNorms a layer, there and back."""
    _, model = pair("BigBirdForMaskedLM", dtype, num_hidden_layers=3, **BLOCKS_OF_4)
    inputs = batch("BigBirdForMaskedLM", model.config, labels=True, T=T)
    chosen = {op: (op, explanation.chosen) for op, explanation in _explained(dtype).items()}
    with record() as calls, torch.set_grad_enabled(train):
        loss = model.train(train)(**inputs).loss
    layer = [chosen[ATTENTION], chosen[NORM], chosen[NORM]]
    assert _own(calls) == layer * 3
    if train:
        with record() as calls:
            loss.backward()
        assert _own(calls) == layer[::-1] * 3


def test_short_input_has_full_attention():
    for name, expected in (("sdpa", 0), ("eager", 0), ("encoders_fast", 2)):
        model = ours.BigBirdModel(config("BigBirdModel", **BLOCKS_OF_4, attn_implementation=name)).eval()
        with record() as calls, torch.no_grad():
            model(**batch("BigBirdModel", model.config, T=28))
        assert [op for op, _ in calls].count(ATTENTION) == expected, name


BACKENDS = sorted({row.name for op in (ATTENTION, NORM) for row in _dispatch.tables()[op]})


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", BACKENDS)
def test_forced_backend(name, train):
    """Every row of the tables gives the model's numbers, or says why it cannot."""
    _, model = pair("BigBirdModel", **BLOCKS_OF_4)
    inputs = batch("BigBirdModel", model.config, T=T)
    names = {op: [row.name for row in rows] for op, rows in _dispatch.tables().items()}
    able = all(name in names[op] and name not in each.refusals for op, each in _explained(torch.float32).items())
    model.train(train)
    with encoders_fast.use_backend(name):
        if not able:
            with pytest.raises(NotImplementedError):
                model(**inputs)
            return
        with record() as calls:
            h = model(**inputs).last_hidden_state
            h.square().mean().backward()
    assert {backend for _, backend in _own(calls)} == {name}
    with encoders_fast.use_backend("reference"), torch.no_grad():
        torch.testing.assert_close(h, model(**inputs).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_attention_is_the_ops_and_nothing_else():
    """A marker in the op's place is all that a layer's attention gives on."""
    _, model = pair("BigBirdModel", **BLOCKS_OF_4)
    inputs = batch("BigBirdModel", model.config, T=T)
    backend = _dispatch.Backend(
        "marker", lambda key: None, lambda q, *rest: (q * 0 + 1, q.new_zeros(q.shape[:3])), lambda *args: None
    )
    remove = _dispatch.register_backend(ATTENTION, backend)
    try:
        with torch.no_grad():
            h = model(**inputs, output_hidden_states=True).hidden_states
            layer = model.encoder.layer[0]
            context = layer.attention.output(torch.ones_like(h[0]), h[0])
            torch.testing.assert_close(h[1], layer.output(layer.intermediate(context), context))
    finally:
        remove()


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operator gave."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
def test_no_tensor_of_all_pairs(is_decoder, train):
    tokens = 2048  # with two heads all pairs are eight times what the op may have in work at a time
    options = {**BLOCKS_OF_16, "num_hidden_layers": 1, "is_decoder": is_decoder, "hidden_dropout_prob": 0.1}
    model = ours.BigBirdModel(config("BigBirdModel", **options)).train(train)
    inputs = batch("BigBirdModel", model.config, B=1, T=tokens)
    with _Largest() as largest, torch.set_grad_enabled(train):
        h = model(**inputs).last_hidden_state
        if train:
            h.sum().backward()
    assert 0 < largest.elements < tokens * tokens / 2
    with _Largest() as largest, torch.no_grad():
        model(**inputs, output_attentions=True)
    assert largest.elements >= 2 * tokens * tokens


@pytest.fixture
def _compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", [{}, {"is_decoder": True}, {"random_plan": "original"}], ids=str)
def test_one_graph(options, train):
    """transformers' breaks into eight to 26, and trains with other random blocks than it does uncompiled."""
    name = "BigBirdForCausalLM" if options.get("is_decoder") else "BigBirdForMaskedLM"
    _, model = pair(name, **{**BLOCKS_OF_4, "block_size": 2, **options})  # sparse from 2 * (5 + 2) + 1 = 15 tokens on
    twin = copy.deepcopy(model.train(train))
    inputs = batch(name, model.config, labels=True, T=25) | ({"use_cache": False} if options.get("is_decoder") else {})
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    with record() as calls, torch.set_grad_enabled(train):
        outputs = [each(**inputs) for each in (model, compiled)]
    assert [op for op, _ in calls].count(ATTENTION) == 4
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-4, atol=1e-4)
    if train:
        for output in outputs:
            output.loss.backward()
        for (key, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            if parameter.grad is not None:
                torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-3, atol=1e-4, msg=key)


def test_export():
    """One node a layer for attention, two for what follows."""
    _, model = pair("BigBirdModel", **BLOCKS_OF_4)
    inputs = batch("BigBirdModel", model.config, T=T)
    program = torch.export.export(model, (), inputs)
    targets = [str(node.target) for node in program.graph.nodes]
    assert [sum(op in target for target in targets) for op in (ATTENTION, NORM)] == [2, 4]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
