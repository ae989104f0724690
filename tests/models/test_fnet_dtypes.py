"""bfloat16, float16, float64 and autocast. transformers' FNet raises in half precision: what plain PyTorch can do there
is the same model with its Fourier transform, and nothing else, in float32."""

import pytest
import torch
import transformers

import encoders_fast.models as ours
from encoders_fast._dispatch import record
from tests.closeness import assert_as_good_as, relative_error
from tests.models.model_cases import (
    HEADS,
    MODELS,
    assert_outputs_as_good,
    batch,
    config,
    exact,
    pair,
    randomize,
    tensors,
)

FNET_MODELS = [name for name in MODELS if name.startswith("FNet")]
FNET_HEADS = [name for name in HEADS if name.startswith("FNet")]
HALF = [torch.bfloat16, torch.float16]


class _InFloat32(torch.nn.Module):
    """FNetBasicFourierTransform as people mend it. Its sum with x is rounded to the storage type, and may overflow."""

    def forward(self, h):
        return (torch.fft.fftn(h.float(), dim=(1, 2)).real.to(h.dtype),)


def _mended(stock):
    for layer in stock.base_model.encoder.layer:
        layer.fourier.self = _InFloat32()
    return stock


def _loss(output):
    if "loss" in output:
        return output.loss.float()
    return sum(
        (value.float() * torch.linspace(-1, 1, value.numel()).view_as(value)).mean() for value in output.values()
    )


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", FNET_MODELS)
def test_half_precision(name, dtype, train):
    stock, model = (each.train(train) for each in pair(name, dtype))
    truth, plain = exact(stock), _mended(stock)
    inputs = batch(name, model.config)
    with torch.no_grad():
        outputs = [each(**inputs) for each in (model, plain, truth)]
    assert_outputs_as_good(*outputs)
    for (_, value), (_, right) in zip(tensors(outputs[0]), tensors(outputs[2]), strict=True):
        assert relative_error(value, right) < 0.2  # the bound above would also accept what is wrong on both sides


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", FNET_MODELS)
def test_half_precision_gradients(name, dtype):
    """All gradients as one vector of relative errors: single ones of few numbers are off by luck."""
    stock, model = (each.train() for each in pair(name, dtype))
    truth, plain = exact(stock), _mended(stock)
    inputs = batch(name, model.config, labels=name in FNET_HEADS)
    for each in (model, plain, truth):
        _loss(each(**inputs)).backward()
    errors = []
    for parameter, theirs, right in zip(model.parameters(), plain.parameters(), truth.parameters(), strict=True):
        if right.grad is None or right.grad.norm() < 1e-6:
            continue
        assert parameter.grad.dtype == dtype
        errors.append([relative_error(each.grad, right.grad) for each in (parameter, theirs)])
    assert len(errors) > 15
    mine, plain_errors = torch.tensor(errors).square().sum(0).sqrt().tolist()
    assert mine <= 2 * plain_errors


@pytest.mark.parametrize("name", FNET_HEADS)
def test_float64(name):
    stock, model = pair(name, torch.float64)
    inputs = batch(name, model.config, labels=True)
    with torch.no_grad():
        for (key, value), (_, expected) in zip(tensors(model(**inputs)), tensors(stock(**inputs)), strict=True):
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11, msg=key)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast(dtype):
    """Weights and residual sums of float32, matrix products in half precision."""
    stock, model = (each.train() for each in pair("FNetForMaskedLM"))
    truth, plain = exact(stock), _mended(stock)
    inputs = batch("FNetForMaskedLM", model.config, labels=True)
    with torch.autocast("cpu", dtype):
        output, theirs = model(**inputs), plain(**inputs)
    right = truth(**inputs)
    assert_as_good_as(output.logits, theirs.logits.to(output.logits.dtype), right.logits)
    assert relative_error(output.logits, right.logits) < 0.1
    for loss in (output.loss, right.loss):
        loss.backward()
    for (key, parameter), other in zip(model.named_parameters(), truth.parameters(), strict=True):
        if other.grad is not None:
            assert parameter.grad.dtype == torch.float32
            assert relative_error(parameter.grad, other.grad) < 0.2, key


def test_float16_survives_a_mean():
    """At T = 512 a mean of 0.5 gives a sum of 131072, which float16 cannot hold, before the LayerNorm. transformers
    with a float32 transform makes that infinite; here the sum never leaves float32."""
    options = {"hidden_size": 512, "max_position_embeddings": 512, "num_hidden_layers": 1}
    stock = transformers.FNetModel(config("FNetModel", transformers, **options)).eval()
    randomize(stock)
    with torch.no_grad():
        stock.embeddings.projection.bias += 0.5
    model = ours.FNetModel(config("FNetModel", **options)).eval()
    model.load_state_dict(stock.state_dict())
    inputs = batch("FNetModel", model.config, B=1, T=512)
    with torch.no_grad():
        right = exact(stock)(**inputs).last_hidden_state
        assert not _mended(stock.half())(**inputs).last_hidden_state.isfinite().all()
        assert relative_error(model.half()(**inputs).last_hidden_state, right) < 0.05


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_training_steps_in_half_precision(dtype):
    """The loss of a batch that is seen again and again falls."""
    model = ours.FNetForSequenceClassification(config("FNetForSequenceClassification")).to(dtype).train()
    inputs = batch("FNetForSequenceClassification", model.config, labels=True, B=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with record() as calls:
        for _ in range(12):
            loss = model(**inputs).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert len(calls) >= 12 * model.config.num_hidden_layers
