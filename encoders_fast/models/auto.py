"""The Auto classes of transformers, on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from . import FAMILIES, TOKENIZERS

_AUTO_CLASSES = {
    "Model": "AutoModel",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}


def register_auto_classes(*families: str) -> Callable[[], None]:
    """Make transformers' Auto classes, and so its pipelines, build this library's models and tokenizers.

    From then on `AutoModelForMaskedLM.from_pretrained("google/fnet-base")` gives an `encoders_fast.FNetForMaskedLM`,
    and `AutoTokenizer.from_pretrained("google/fnet-base")` an `encoders_fast.FNetTokenizerFast`.

    Args:
        families: model types, "fnet" or "xlm-roberta-xl"; all that this library has where none is given.

    Returns: a function that takes the registration back.

    Raises: ValueError for a model type that this library does not have.
    """
    modules = {family: family.replace("-", "_") for family in families or FAMILIES}
    unknown = [family for family, module in modules.items() if module not in FAMILIES]
    if unknown:
        raise ValueError(f"no models for {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    undo: list[Callable[[], None]] = []
    for module in modules.values():
        undo.extend(_register(module))

    def unregister() -> None:
        while undo:
            undo.pop()()

    return unregister


def _register(family: str) -> list[Callable[[], None]]:
    models = __import__(f"{__package__}.{family}", fromlist=["*"])
    name = next(name for name in FAMILIES[family] if name.endswith("Config"))
    prefix, ours, stock = name.removesuffix("Config"), getattr(models, name), getattr(transformers, name)
    configs = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    undo = [_put(transformers.AutoConfig, configs, ours.model_type, ours)]
    for suffix, auto_name in _AUTO_CLASSES.items():
        model = getattr(models, prefix + suffix, None)
        if model is None and suffix == "ForPreTraining":  # some families are pre-trained as masked language models
            model = getattr(models, prefix + "ForMaskedLM", None)
        if model is not None:
            auto: Any = getattr(transformers, auto_name)
            undo += [_put(auto, auto._model_mapping, config, model) for config in (ours, stock)]
    if family in TOKENIZERS:
        tokenizers = __import__(f"{__package__}.tokenizers.{family}", fromlist=["*"])
        slow, fast = (getattr(tokenizers, name) for name in TOKENIZERS[family])
        undo += _put_tokenizers(slow, fast, (ours, stock))
    return undo


def _put_tokenizers(slow: type, fast: type, configs: tuple[type, ...]) -> list[Callable[[], None]]:
    """As transformers 4 did, AutoTokenizer prefers the fast tokenizer, whichever of the two was saved."""
    auto = transformers.models.auto.tokenization_auto
    undo = [_assign(auto.TOKENIZER_MAPPING._extra_content, config, fast) for config in configs]
    for table in (auto.REGISTERED_TOKENIZER_CLASSES, auto.REGISTERED_FAST_ALIASES):
        undo += [_assign(table, name, fast) for name in (slow.__name__, fast.__name__)]
    return undo


def _put(auto: Any, mapping: Any, key: Any, value: Any) -> Callable[[], None]:
    """Register key -> value with an Auto class; returns what brings the earlier state back."""
    undo = _assign(mapping._extra_content, key, value)
    auto.register(key, value, exist_ok=True)
    mapping._extra_content[key] = value  # in 5.17 `register` silently leaves out transformers' own configurations
    return undo


def _assign(table: dict[Any, Any], key: Any, value: Any) -> Callable[[], None]:
    """Set table[key]; returns what brings the earlier state back."""
    earlier = table.get(key)
    table[key] = value

    def undo() -> None:
        if earlier is None:
            del table[key]
        else:
            table[key] = earlier

    return undo
