"""bfloat16, float16, float64 and autocast. With float16 parameters the stream is float32: published checkpoints grow it
to 1e7, where transformers gives infinities."""

import pytest
import torch

import encoders_fast.models as ours
from encoders_fast._dispatch import record
from tests.closeness import relative_error
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

NAMES = [name for name in MODELS if name.startswith("MobileBert")]
VARIANTS = {
    "no_norm": {},
    "layer_norm": {"normalization_type": "layer_norm"},
    "no bottleneck": {"use_bottleneck": False},
}
HALF = [torch.bfloat16, torch.float16]


def _calm(model):
    """Random weights make the stream grow; half precision is compared where it does not."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 0.5
    return model


def _models(name, dtype, **options):
    stock, model = pair(name, **options)
    _calm(stock)
    model.load_state_dict(stock.state_dict())
    stock.to(dtype)
    return stock, model.to(dtype), exact(stock)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision(dtype, variant, train):
    stock, model, truth = (each.train(train) for each in _models("MobileBertForPreTraining", dtype, **variant))
    inputs = batch("MobileBertForPreTraining", model.config, B=8)
    with torch.no_grad():
        output, plain, right = (each(**inputs, output_hidden_states=True) for each in (model, stock, truth))
    assert output.prediction_logits.dtype == dtype
    wide = torch.float32 if dtype == torch.float16 else dtype
    assert {h.dtype for h in output.hidden_states} == {wide}
    if wide == dtype:
        assert_outputs_as_good(output, plain, right)
    for (_, value), (_, theirs), (_, exactly) in zip(tensors(output), tensors(plain), tensors(right), strict=True):
        assert relative_error(value, exactly) <= 2 * relative_error(theirs, exactly) + torch.finfo(dtype).eps
        assert relative_error(value, exactly) < 0.2  # the bound above would also accept what is wrong on both sides


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_gradients(name, dtype):
    """All gradients as one vector of relative errors: single ones of few numbers are off by luck."""
    models = [each.train() for each in _models(name, dtype, hidden_act="gelu")]
    inputs = batch(name, models[0].config, labels=name in HEADS, B=8)
    for each in models:
        output = each(**inputs)
        loss = output.loss if name in HEADS else output.last_hidden_state.float().square().mean()
        loss.backward()
    stock, model, truth = models
    errors = []
    for parameter, theirs, right in zip(model.parameters(), stock.parameters(), truth.parameters(), strict=True):
        if right.grad is None or right.grad.norm() < 1e-6:
            continue
        assert parameter.grad.dtype == dtype
        errors.append([relative_error(each.grad, right.grad) for each in (parameter, theirs)])
    assert len(errors) > 20
    mine, plain = torch.tensor(errors).square().sum(0).sqrt().tolist()
    assert mine <= 2 * plain


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_float64(name, variant):
    stock, model = pair(name, torch.float64, **variant)
    inputs = batch(name, model.config, labels=name in HEADS)
    with torch.no_grad():
        for (key, value), (_, expected) in zip(tensors(model(**inputs)), tensors(stock(**inputs)), strict=True):
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast(dtype):
    """Parameters and stream of float32, matrices in half precision."""
    stock, model, truth = _models("MobileBertForMaskedLM", torch.float32)
    inputs = batch("MobileBertForMaskedLM", model.config, labels=True, B=8)
    with torch.autocast("cpu", dtype), record() as calls:
        output, theirs = model.train()(**inputs), stock.train()(**inputs)
    assert len(calls) == 4
    right = truth.train()(**inputs)
    error = relative_error(output.logits, right.logits)
    assert error <= 2 * relative_error(theirs.logits, right.logits) + torch.finfo(dtype).eps
    for loss in (output.loss, right.loss):
        loss.backward()
    for (key, parameter), other in zip(model.named_parameters(), truth.parameters(), strict=True):
        if other.grad is not None and other.grad.norm() > 1e-6:
            assert parameter.grad.dtype == torch.float32
            assert relative_error(parameter.grad, other.grad) < 0.3, key


# ---- a stream that float16 cannot hold ------------------------------------------------------------------------------

LOUD = 7


@torch.no_grad()
def _loud(model):
    """One channel of the stream at 1e8, as in published checkpoints, and matrices that hardly look at it."""
    _calm(model)
    layers = model.base_model.encoder.layer
    model.base_model.embeddings.LayerNorm.weight[LOUD] = 3e4
    model.base_model.embeddings.LayerNorm.bias[LOUD] = 3e4
    layers[0].output.bottleneck.LayerNorm.weight[LOUD] = 3e3
    for layer in layers:
        for linear in (layer.bottleneck.input.dense, layer.bottleneck.attention.dense, layer.attention.self.value):
            linear.weight[:, LOUD] *= 3e-6
    pooler = getattr(model.base_model.pooler, "dense", None)
    if pooler is not None:
        pooler.weight[:, LOUD] *= 3e-6


def _loud_models(name, **options):
    """(stock and ours in float16, ours in bfloat16, the exact one), with the weights of the first."""
    stock, model = pair(name, **options)
    _loud(stock)
    stock.half()
    model.load_state_dict(stock.state_dict())
    coarse = getattr(ours, name)(config(name, **options)).eval()
    coarse.load_state_dict(stock.state_dict())
    return stock, model.half(), coarse.bfloat16(), exact(stock)


@pytest.mark.parametrize("name", NAMES)
def test_float16_holds_a_stream_of_1e8(name):
    stock, model, coarse, truth = _loud_models(name)
    inputs = batch(name, model.config, B=8)
    with torch.no_grad():
        outputs = [each(**inputs, output_hidden_states=True) for each in (model, coarse, truth)]
        assert outputs[2].hidden_states[1].abs().max() > 1e8
        assert not stock(**inputs, output_hidden_states=True).hidden_states[1].isfinite().all()
    for (key, value), (_, bfloat16), (_, right) in zip(*map(tensors, outputs), strict=True):
        assert value.isfinite().all(), key
        assert relative_error(value, right) <= relative_error(bfloat16, right), key
        if value.shape[-1] == 32 and value.dim() == 3:  # channel by channel, since one is louder than the rest
            for channel in range(32):
                errors = [relative_error(each[..., channel], right[..., channel]) for each in (value, bfloat16)]
                assert errors[0] <= errors[1], (key, channel)


@pytest.mark.parametrize("options", [{"hidden_act": "quick_gelu"}, {"classifier_activation": False}], ids=str)
def test_other_ways_through_the_model(options):
    """Layers that are composed of their modules, and the raw stream as the pooled state."""
    _, model, coarse, truth = _loud_models("MobileBertForSequenceClassification", **options)
    inputs = batch("MobileBertForSequenceClassification", model.config, B=8)
    with torch.no_grad():
        value, bfloat16, right = (each(**inputs).logits for each in (model, coarse, truth))
    assert value.isfinite().all()
    assert relative_error(value, right) <= relative_error(bfloat16, right)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "encoders_fast"])
@pytest.mark.parametrize("composed", [False, True])
def test_float16_autocast_of_a_stream_of_1e8(implementation, composed):
    _, model = pair("MobileBertForMaskedLM", attn_implementation=implementation)
    _loud(model)
    truth = exact(model)
    if composed:
        model.mobilebert.encoder.layer[0].output.register_forward_hook(lambda *args: None)
    inputs = batch("MobileBertForMaskedLM", model.config, labels=True)
    with torch.autocast("cpu", torch.float16):
        output = model.train()(**inputs, output_hidden_states=True)
    assert output.hidden_states[-1].abs().max() > 1e8
    with torch.no_grad():
        assert relative_error(output.logits, truth(**inputs).logits) < 2e-2
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_training_steps_in_float16():
    """The loss of a batch that is seen again and again falls."""
    for dtype in HALF:
        model = ours.MobileBertForSequenceClassification(config("MobileBertForSequenceClassification")).train()
        randomize(model)
        _calm(model).to(dtype)
        inputs = batch("MobileBertForSequenceClassification", model.config, labels=True, B=8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        losses = []
        for _ in range(12):
            loss = model(**inputs).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]
