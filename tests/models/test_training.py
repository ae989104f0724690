"""Dropout, gradient checkpointing, and Trainer."""

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

import encoders_fast.models as ours
from encoders_fast._dispatch import record
from tests.models.model_cases import MODELS, batch, config, pair, randomize, tensors

# transformers renamed it between 5.17 and 5.23; the old name warns.
renamed = hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
CHECKPOINTING = "activation_checkpointing" if renamed else "gradient_checkpointing"


def _dropouts(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_where_stock_has_it(name):
    stock = getattr(transformers, name)(config(name, transformers, hidden_dropout_prob=0.25))
    model = getattr(ours, name)(config(name, hidden_dropout_prob=0.25))
    theirs = {key: module.p for key, module in _dropouts(stock).items()}
    assert {key: module.p for key, module in _dropouts(model).items()} == theirs


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("FNet")])
def test_dropout_with_the_same_seed_is_stock_dropout(name):
    """Where no op drops anything, as somebody looks at the modules, masks come from torch's generator in the same
    order: a seed gives the numbers of transformers."""
    stock, model = (each.train() for each in pair(name, hidden_dropout_prob=0.25))
    inputs = batch(name, model.config)

    def run(each, seed):
        torch.manual_seed(seed)
        return torch.cat([value.flatten() for _, value in tensors(each(**inputs))])

    def assert_drops():
        first = run(model.train(), 3)
        assert torch.equal(first, run(model, 3))
        assert not torch.allclose(first, run(model, 4), rtol=0.1)
        assert not torch.allclose(first, run(model.eval(), 3), rtol=0.1)
        return first

    op = assert_drops()
    for module in _dropouts(model).values():
        module.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(assert_drops(), run(stock, 3), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(op, run(stock, 3), rtol=0.1)


def test_dropout_of_the_op_has_rate_and_scale():
    """Without hooks the op drops the feed-forward block's output, here ones, and adds h, here zeros and tens."""
    _, model = pair("FNetModel", hidden_dropout_prob=0.25, num_hidden_layers=1, hidden_size=128)
    layer = model.train().encoder.layer[0]
    h = 10.0 * (torch.arange(128) % 2)
    with torch.no_grad():
        for parameter, value in (
            (layer.fourier.output.LayerNorm.weight, 0),
            (layer.fourier.output.LayerNorm.bias, h),
            (layer.output.dense.weight, 0),
            (layer.output.dense.bias, 1),
            (layer.output.LayerNorm.weight, 1),
            (layer.output.LayerNorm.bias, 0),
        ):
            parameter.copy_(torch.as_tensor(value))
        with record() as calls:
            y = model(**batch("FNetModel", model.config, B=8, T=48)).last_hidden_state
    assert "residual_layer_norm" in [op for op, _ in calls]
    # In every row the least is 0 and the greatest 10 + 4 / 3, which undoes the LayerNorm.
    least, greatest = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
    added = (y - least) / (greatest - least) * (10 + 4 / 3) - h
    dropped = added.abs() < 0.1
    # 8 * 48 * 128 draws: four standard deviations are 0.008.
    assert abs(dropped.float().mean().item() - 0.25) < 0.008
    torch.testing.assert_close(added[~dropped], torch.full_like(added[~dropped], 4 / 3), rtol=1e-4, atol=1e-4)


def test_dropout_rate_and_scale():
    """Each of the three dropouts zeroes a quarter of what passes and scales the rest by 4 / 3."""
    _, model = pair("FNetForTokenClassification", hidden_dropout_prob=0.25, num_hidden_layers=1, hidden_size=128)
    seen = {}
    for name, module in _dropouts(model.train()).items():
        module.register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: (args[0].clone(), output.clone())})
        )
    inputs = batch("FNetForTokenClassification", model.config, B=8, T=48)
    model(**inputs)
    assert len(seen) == 3
    for name, (before, after) in seen.items():
        dropped = after == 0
        # 8 * 48 * 128 draws: four standard deviations are 0.008.
        assert abs(dropped.float().mean().item() - 0.25) < 0.008, name
        torch.testing.assert_close(after[~dropped], before[~dropped] / 0.75)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["FNetModel", "FNetForPreTraining"])
def test_gradient_checkpointing(name, reentrant):
    _, model = pair(name, hidden_dropout_prob=0.1)
    _, twin = pair(name, hidden_dropout_prob=0.1)
    enable = getattr(twin, f"{CHECKPOINTING}_enable")
    enable(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}})
    assert getattr(twin, f"is_{CHECKPOINTING}")
    calls = []
    for layer in twin.base_model.encoder.layer:
        layer.intermediate.register_forward_hook(lambda *args: calls.append(1))
    for each in (model, twin):
        torch.manual_seed(0)
        output = each.train()(**batch(name, each.config, labels=name != "FNetModel"))
        loss = output.loss if name != "FNetModel" else output.last_hidden_state.square().mean()
        loss.backward()
    assert len(calls) == 2 * model.config.num_hidden_layers  # each layer ran again in the backward pass
    for (key, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(other.grad, parameter.grad, msg=key)


class _Sentences(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(5, 99, (12,), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": int(ids[0] > 50)}


def _train(library, folder, batch_size=4, attributes=(), **options):
    torch.manual_seed(0)
    model = library.FNetForSequenceClassification(config("FNetForSequenceClassification", library, num_labels=2))
    randomize(model)
    for name, value in attributes:
        setattr(model, name, value)
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=batch_size,
        num_train_epochs=2,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    trainer = Trainer(model, arguments, train_dataset=_Sentences(), eval_dataset=_Sentences())
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, logged


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {CHECKPOINTING: True}],
    ids=["plain", "accumulated", "checkpointed"],
)
def test_trainer(options, tmp_path):
    """Trainer trains ours as it trains stock: the same losses step by step, and checkpoints that stock reads."""
    trainer, losses = _train(ours, tmp_path / "ours", **options)
    _, theirs = _train(transformers, tmp_path / "stock", **options)
    assert len(losses) == 8 // options.get("gradient_accumulation_steps", 1)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(theirs), rtol=1e-3, atol=1e-4)
    assert losses[-1] < losses[0]
    assert trainer.evaluate()["eval_loss"] > 0
    predictions = trainer.predict(_Sentences()).predictions
    saved = sorted((tmp_path / "ours").glob("checkpoint-*"))[-1]
    loaded = transformers.FNetForSequenceClassification.from_pretrained(saved).eval()
    ids = torch.stack([_Sentences()[i]["input_ids"] for i in range(len(_Sentences()))])
    torch.testing.assert_close(loaded(ids).logits, torch.from_numpy(predictions), rtol=1e-4, atol=1e-4)


def test_accumulated_gradients_are_means_on_request(tmp_path):
    """By default, as with stock, Trainer takes the sum of the accumulated batches' mean losses."""

    def weights(**options):
        trainer, _ = _train(ours, tmp_path, optim="sgd", max_grad_norm=0.0, **options)
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    whole = weights(batch_size=8)
    halves = weights(gradient_accumulation_steps=2, attributes=[("accepts_loss_kwargs", False)])
    torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weights(gradient_accumulation_steps=2), whole, rtol=1e-4, atol=1e-5)


def test_trainer_in_bfloat16(tmp_path):
    _, losses = _train(ours, tmp_path, bf16=True)
    assert losses[-1] < losses[0]
