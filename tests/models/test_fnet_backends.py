"""Which backend each layer ran on: a model must not fall back without anyone noticing."""

import pytest
import torch

import encoders_fast
import encoders_fast.models as ours
from encoders_fast import _dispatch
from encoders_fast._dispatch import record
from encoders_fast.ops.fourier_mixing import reference
from tests.models.model_cases import batch, config, pair

OP = "fourier_mixing_layer_norm"


def _first_able(dtype):
    """What the table says for a model on this machine, asked for without running it."""
    x, weight = torch.empty(2, 12, 32, dtype=dtype), torch.empty(32, dtype=dtype)
    return encoders_fast.explain(OP, x, weight, weight).chosen


def _own(calls):
    return [call for call in calls if call[0] == OP]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_backend_of_each_layer(dtype, train):
    _, model = pair("FNetForMaskedLM", dtype, num_hidden_layers=3)
    inputs = batch("FNetForMaskedLM", model.config, labels=True)
    with record() as calls, torch.set_grad_enabled(train):
        loss = model.train(train)(**inputs).loss
    expected = (OP, _first_able(dtype))
    assert _own(calls) == [expected] * 3
    if train:
        with record() as calls:
            loss.backward()
        assert _own(calls) == [expected] * 3


def test_native_kernel_runs_where_it_was_built():
    from encoders_fast import _native

    assert _first_able(torch.float32) == ("reference" if _native.missing else "cpu")
    assert _first_able(torch.float64) == "reference"


BACKENDS = [backend.name for backend in _dispatch.tables()[OP]]


@pytest.mark.parametrize("name", BACKENDS)
def test_forced_backend(name):
    """Every row of the table gives the model's numbers, or says why it cannot."""
    _, model = pair("FNetModel")
    inputs = batch("FNetModel", model.config)
    x, weight = torch.empty(2, 12, 32), torch.empty(32)
    refusal = encoders_fast.explain(OP, x, weight, weight).refusals.get(name)
    with encoders_fast.use_backend(name):
        if refusal is not None:
            with pytest.raises(NotImplementedError, match="no backend can run this call"):
                model(**inputs)
            return
        with record() as calls:
            h = model(**inputs).last_hidden_state
            h.square().mean().backward()
    assert {backend for _, backend in _own(calls)} == {name}
    with encoders_fast.use_backend("reference"), torch.no_grad():
        torch.testing.assert_close(h, model(**inputs).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_mixing_is_the_ops_and_nothing_else():
    """The model has no Fourier transform of its own that could hide behind the op's name."""
    model = ours.FNetModel(config("FNetModel")).eval()
    inputs = batch("FNetModel", model.config)
    backend = _dispatch.Backend(
        "marker",
        lambda key: None,
        lambda x, *rest: (x * 0 + 1, x.new_empty(0), x.new_empty(0)),
        reference.fourier_mixing_layer_norm_backward,
    )
    remove = _dispatch.register_backend(OP, backend)
    try:
        with torch.no_grad():
            h = model(**inputs, output_hidden_states=True).hidden_states
            expected = model.encoder.layer[0].feed_forward(torch.ones_like(h[0]))
        torch.testing.assert_close(h[1], expected)
    finally:
        remove()
