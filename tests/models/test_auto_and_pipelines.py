"""transformers' Auto classes and pipelines with our models, on real text."""

import numpy as np
import pytest
import torch
import transformers

import encoders_fast.models as ours
from tests.models.model_cases import MODELS, config, family, pair, randomize


@pytest.fixture
def _registered():
    unregister = ours.register_auto_classes()
    yield
    unregister()


def _auto_class(name):
    return getattr(transformers, "Auto" + name.replace(family(name), "Model" if "For" in name else ""))


def _checkpoint(name, folder, tokenizer, **options):
    """A stock checkpoint with its tokenizer, as it lies on the hub."""
    options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **options}
    stock = getattr(transformers, name)(config(name, transformers, **options)).eval()
    randomize(stock)
    stock.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return stock


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("name", MODELS)
def test_auto_classes(name, tmp_path):
    stock, _ = pair(name)
    stock.save_pretrained(tmp_path)
    auto = _auto_class(name)
    model = auto.from_pretrained(tmp_path)
    assert type(model) is getattr(ours, name)
    assert type(model.config) is getattr(ours, f"{family(name)}Config")
    assert type(auto.from_config(config(name))) is getattr(ours, name)
    assert type(auto.from_config(config(name, transformers))) is getattr(ours, name)


@pytest.mark.parametrize("name", MODELS)
def test_auto_classes_are_left_alone_without_a_request(name):
    ours.register_auto_classes(config(name).model_type)()  # registered, and taken back
    assert type(_auto_class(name).from_config(config(name, transformers))) is getattr(transformers, name)


def test_registration_of_an_unknown_family():
    with pytest.raises(ValueError, match="no models for bert; there are big_bird, fnet"):
        ours.register_auto_classes("bert")


def _assert_same_answers(mine, theirs):
    assert type(mine) is type(theirs)
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            _assert_same_answers(mine[key], theirs[key])
    elif isinstance(mine, list):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            _assert_same_answers(one, other)
    elif isinstance(mine, (float, np.floating)):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    else:
        assert mine == theirs


PIPELINES = {
    "fill-mask": ("FNetForMaskedLM", {}),
    "text-classification": ("FNetForSequenceClassification", {"top_k": 3}),
    "token-classification": ("FNetForTokenClassification", {}),
    "feature-extraction": ("FNetModel", {}),
}


@pytest.mark.parametrize("task", PIPELINES)
def test_pipeline(task, tokenizer, sentences, tmp_path):
    name, options = PIPELINES[task]
    stock = _checkpoint(name, tmp_path, tokenizer)
    text = [sentence[:80] + (" [MASK]" if task == "fill-mask" else "") for sentence in sentences[:3]]
    theirs = transformers.pipeline(task, model=stock, tokenizer=tokenizer, device="cpu", **options)(text)
    model = getattr(ours, name).from_pretrained(tmp_path)
    mine = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **options)(text)
    _assert_same_answers(mine, theirs)
    unregister = ours.register_auto_classes()
    try:
        by_path = transformers.pipeline(task, model=str(tmp_path), device="cpu", **options)
        assert type(by_path.model) is getattr(ours, name)
        _assert_same_answers(by_path(text), theirs)
    finally:
        unregister()


def test_padded_text(tokenizer, sentences, tmp_path):
    """What a tokenizer gives goes straight into the model, and padding takes part, as in transformers."""
    stock = _checkpoint("FNetForMaskedLM", tmp_path, tokenizer)
    model = ours.FNetForMaskedLM.from_pretrained(tmp_path)
    encoded = tokenizer([sentence[:60] for sentence in sentences[:4]], padding=True, return_tensors="pt")
    assert (encoded["input_ids"] == tokenizer.pad_token_id).any()
    with torch.no_grad():
        torch.testing.assert_close(model(**encoded).logits, stock(**encoded).logits, rtol=1e-4, atol=1e-4)
        alone = tokenizer([sentences[0][:60]], return_tensors="pt")
        assert not torch.allclose(model(**alone).logits[0, 1], model(**encoded).logits[0, 1], rtol=1e-2)
