"""Encoders with the class names, checkpoints and numbers of Hugging Face transformers. Needs the extra `[models]`.

Importing this package is cheap: transformers is loaded when the first name below is touched.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .other_frameworks.class_names import refuse

if TYPE_CHECKING:
    from .auto import register_auto_classes as register_auto_classes
    from .big_bird import *  # noqa: F403
    from .fnet import *  # noqa: F403
    from .live import accelerate as accelerate
    from .live import restore as restore
    from .live import verify as verify
    from .mobilebert import *  # noqa: F403
    from .roberta_prelayernorm import *  # noqa: F403
    from .tokenizers.big_bird import *  # noqa: F403
    from .tokenizers.fnet import *  # noqa: F403
    from .tokenizers.mobilebert import *  # noqa: F403
    from .xlm_roberta_xl import *  # noqa: F403

FAMILIES: dict[str, tuple[str, ...]] = {
    "big_bird": (
        "BigBirdConfig",
        "BigBirdForCausalLM",
        "BigBirdForMaskedLM",
        "BigBirdForMultipleChoice",
        "BigBirdForPreTraining",
        "BigBirdForPreTrainingOutput",
        "BigBirdForQuestionAnswering",
        "BigBirdForQuestionAnsweringModelOutput",
        "BigBirdForSequenceClassification",
        "BigBirdForTokenClassification",
        "BigBirdModel",
        "BigBirdPreTrainedModel",
    ),
    "fnet": (
        "FNetConfig",
        "FNetForMaskedLM",
        "FNetForMultipleChoice",
        "FNetForNextSentencePrediction",
        "FNetForPreTraining",
        "FNetForPreTrainingOutput",
        "FNetForQuestionAnswering",
        "FNetForSequenceClassification",
        "FNetForTokenClassification",
        "FNetModel",
        "FNetPreTrainedModel",
    ),
    "mobilebert": (
        "MobileBertConfig",
        "MobileBertForMaskedLM",
        "MobileBertForMultipleChoice",
        "MobileBertForNextSentencePrediction",
        "MobileBertForPreTraining",
        "MobileBertForPreTrainingOutput",
        "MobileBertForQuestionAnswering",
        "MobileBertForSequenceClassification",
        "MobileBertForTokenClassification",
        "MobileBertModel",
        "MobileBertPreTrainedModel",
    ),
    "roberta_prelayernorm": (
        "RobertaPreLayerNormConfig",
        "RobertaPreLayerNormForCausalLM",
        "RobertaPreLayerNormForMaskedLM",
        "RobertaPreLayerNormForMultipleChoice",
        "RobertaPreLayerNormForQuestionAnswering",
        "RobertaPreLayerNormForSequenceClassification",
        "RobertaPreLayerNormForTokenClassification",
        "RobertaPreLayerNormModel",
        "RobertaPreLayerNormPreTrainedModel",
    ),
    "xlm_roberta_xl": (
        "XLMRobertaXLConfig",
        "XLMRobertaXLForCausalLM",
        "XLMRobertaXLForMaskedLM",
        "XLMRobertaXLForMultipleChoice",
        "XLMRobertaXLForQuestionAnswering",
        "XLMRobertaXLForSequenceClassification",
        "XLMRobertaXLForTokenClassification",
        "XLMRobertaXLModel",
        "XLMRobertaXLPreTrainedModel",
    ),
}
"""Module of this package -> the public names in it. The module is named after transformers' `model_type`, with an
underscore for every hyphen."""

TOKENIZERS: dict[str, tuple[str, ...]] = {
    "big_bird": ("BigBirdTokenizer", "BigBirdTokenizerFast"),
    "fnet": ("FNetTokenizer", "FNetTokenizerFast"),
    "mobilebert": ("MobileBertTokenizer", "MobileBertTokenizerFast"),
}
"""Family with tokenizers of its own -> the slow one and the fast one, in the module `tokenizers.<family>`."""

_MODULES = {name: family for family, names in FAMILIES.items() for name in names}
_MODULES |= {name: f"tokenizers.{family}" for family, names in TOKENIZERS.items() for name in names}
_MODULES["register_auto_classes"] = "auto"
_MODULES |= dict.fromkeys(("accelerate", "restore", "verify"), "live")

__all__ = ["FAMILIES", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        refuse(name, FAMILIES)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(f"{name} needs transformers, which is not installed: pip install 'encoders-fast[models]'")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
