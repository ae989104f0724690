"""Are TensorFlow's and Flax's checkpoints, as transformers 4.57 really saves them, the same models here?

    python3.11 -m venv /tmp/frameworks
    /tmp/frameworks/bin/pip install transformers==4.57.6 tensorflow-cpu==2.18.1 tf-keras==2.18.0 \
        flax==0.8.5 jax==0.4.30 jaxlib==0.4.30 'numpy<2' 'scipy<1.13'
    /tmp/frameworks/bin/python -m tests.golden.check_other_frameworks save /tmp/checkpoints    # from the root
    .venv/bin/python -m tests.golden.check_other_frameworks compare /tmp/checkpoints

The first call saves every class that those frameworks had, with random weights, as a folder with its inputs and its
outputs; the second loads each folder and compares the outputs. It ends with status 1 if one differs.
`/tmp/frameworks/bin/python -m tests.golden.check_other_frameworks keep` writes the few that the tests have.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KEPT = Path(__file__).with_name("other_frameworks")
EXPECTED = "expected.safetensors"
ROBERTA = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-5,
}
BIG_BIRD = {**ROBERTA, "attention_type": "original_full", "pad_token_id": 0}
MOBILE_BERT = {
    **ROBERTA,
    "embedding_size": 12,
    "intra_bottleneck_size": 8,
    "num_feedforward_networks": 3,
    "pad_token_id": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "without-bottlenecks": {"use_bottleneck": False, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "one-bottleneck": {"key_query_shared_bottleneck": False, "use_bottleneck_attention": True},
    "without-trigrams": {"trigram_input": False},
    "with-LayerNorm": {"normalization_type": "layer_norm"},
}
HEADS = (
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)
TOKENS, CHOICES = 12, 3


class Case(NamedTuple):
    """A model of transformers 4.57, and how it is saved."""

    name: str
    config: dict[str, Any]
    sharded: bool = False
    bfloat16: bool = False
    decoder_is_words: bool = True
    """Whether MobileBERT's decoder, a weight of its own in Keras, gets the words' values."""


def cases() -> Iterator[tuple[str, Case]]:
    """A folder's name -> what is saved there."""
    suffixes = {
        "TFMobileBert": ("Model", "ForPreTraining", "ForNextSentencePrediction", *HEADS),
        "TFRobertaPreLayerNorm": ("Model", "ForCausalLM", *HEADS),
        "FlaxBigBird": ("Model", "ForPreTraining", "ForCausalLM", *HEADS),
        "FlaxRobertaPreLayerNorm": ("Model", "ForCausalLM", *HEADS),
    }
    configs = {"MobileBert": MOBILE_BERT, "RobertaPreLayerNorm": ROBERTA, "BigBird": BIG_BIRD}
    for family, names in suffixes.items():
        config = configs[re.sub("^(TF|Flax)", "", family)]
        for suffix in names:
            more = {"is_decoder": True} if suffix == "ForCausalLM" else {}
            more |= {"num_labels": 3} if "Classification" in suffix else {}
            yield family + suffix, Case(family + suffix, {**config, **more})
        masked = f"{family}ForMaskedLM"
        yield f"{masked}-in-shards", Case(masked, config, sharded=True)
        yield f"{masked}-untied", Case(masked, {**config, "tie_word_embeddings": False}, decoder_is_words=False)
    pretraining = "TFMobileBertForPreTraining"
    yield f"{pretraining}-with-a-decoder-of-its-own", Case(pretraining, MOBILE_BERT, decoder_is_words=False)
    for variant, more in VARIANTS.items():
        yield f"TFMobileBertModel-{variant}", Case("TFMobileBertModel", {**MOBILE_BERT, **more})
    yield "FlaxBigBirdForMaskedLM-in-bfloat16", Case("FlaxBigBirdForMaskedLM", BIG_BIRD, bfloat16=True)
    config = {**ROBERTA, "is_decoder": True, "add_cross_attention": True}
    yield "FlaxRobertaPreLayerNormForCausalLM-with-cross-attention", Case("FlaxRobertaPreLayerNormForCausalLM", config)


def kept() -> Iterator[tuple[str, Case]]:
    """What the tests have, as small as it can be."""
    config = {**MOBILE_BERT, "num_hidden_layers": 1, "num_feedforward_networks": 2}
    yield "TFMobileBertForMaskedLM", Case("TFMobileBertForMaskedLM", config)
    config = {**ROBERTA, "num_hidden_layers": 1}
    yield (
        "FlaxRobertaPreLayerNormForMaskedLM-in-shards",
        Case("FlaxRobertaPreLayerNormForMaskedLM", config, sharded=True),
    )
    config = {**BIG_BIRD, "num_hidden_layers": 1}
    yield "FlaxBigBirdForPreTraining", Case("FlaxBigBirdForPreTraining", config)
    yield "FlaxBigBirdForMaskedLM-in-bfloat16", Case("FlaxBigBirdForMaskedLM", config, bfloat16=True)


# ---- with transformers 4.57 and both frameworks ---------------------------------------------------------------------


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight's values: all matter, and a scale is around 1."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    is_scale = re.search("gamma|scale|LayerNorm/weight", name) is not None
    return ((1 + 0.3 * values) if is_scale else values * (0.3 if len(shape) == 1 else 0.2)).astype(np.float32)


def inputs(case: Case) -> dict[str, np.ndarray]:
    random = np.random.RandomState(zlib.crc32(case.name.encode()))
    shape = (2, CHOICES, TOKENS) if "MultipleChoice" in case.name else (2, TOKENS)
    mask = np.ones(shape, dtype=np.int64)
    mask[-1, ..., 9:] = 0
    ids = random.randint(4, case.config["vocab_size"], shape)
    types = random.randint(0, case.config["type_vocab_size"], shape)
    return {"input_ids": np.where(mask == 1, ids, 1), "attention_mask": mask, "token_type_ids": types}


def save(folder: Path, chosen: Iterable[tuple[str, Case]]) -> None:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1", "TF_ENABLE_ONEDNN_OPTS": "0"}
    import transformers
    from safetensors.numpy import save_file

    if not transformers.__version__.startswith("4.57."):
        sys.exit(f"transformers 4.57 is needed; this is {transformers.__version__}")
    transformers.logging.set_verbosity_error()
    for name, case in chosen:
        base = re.sub("^(TF|Flax)|(Model|For).*", "", case.name)
        model = getattr(transformers, case.name)(getattr(transformers, f"{base}Config")(**case.config))
        given = inputs(case)
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        output = (_tensorflow if case.name.startswith("TF") else _flax)(model, case, given)
        model.save_pretrained(target, **({"max_shard_size": "8KB"} if case.sharded else {}))
        outputs = {f"output {key}": np.asarray(value, dtype=np.float32) for key, value in output.items()}
        save_file({**given, **outputs}, target / EXPECTED)
        print(f"{name}: {sum(file.stat().st_size for file in target.iterdir())} bytes")


def _tensorflow(model: Any, case: Case, given: dict[str, np.ndarray]) -> dict[str, Any]:
    model(given)
    for weight in model.weights:
        weight.assign(noise(weight.name, tuple(weight.shape)))
    if case.decoder_is_words and "cls" in " ".join(weight.name for weight in model.weights):
        words = next(weight for weight in model.weights if "word_embeddings" in weight.name)
        for weight in model.weights:
            if "decoder/weight" in weight.name:
                weight.assign(words)
    return _arrays(model(given))


def _flax(model: Any, case: Case, given: dict[str, np.ndarray]) -> dict[str, Any]:
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    jax.config.update("jax_default_matmul_precision", "highest")
    params = flatten_dict(model.params, sep="/")
    model.params = unflatten_dict(
        {key: jax.numpy.asarray(noise(key, value.shape)) for key, value in params.items()}, sep="/"
    )
    if case.bfloat16:
        model.params = model.to_bf16(model.params)
    return _arrays(model(**given))


def _arrays(output: Any) -> dict[str, Any]:
    return {key: value for key, value in output.items() if hasattr(value, "shape")}


# ---- with this library ----------------------------------------------------------------------------------------------


def compare(folder: Path) -> bool:
    warnings.simplefilter("ignore")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    right = True
    for target in sorted(folder.iterdir()):
        name = re.sub("^(TF|Flax)|-.*", "", target.name)
        errors, report = differences(target, name, torch.float32)
        lost = {key: sorted(value) for key, value in report.items() if value}
        good = max(errors.values()) < 1e-5 and not lost.pop("unexpected_keys", None)
        right = right and good
        print(
            "ok   " if good else "WRONG",
            target.name,
            {key: f"{error:.1e}" for key, error in errors.items()},
            lost or "",
        )
    return right


def differences(folder: Path, name: str, dtype: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """The relative difference of each output of this library's model `name` from what is expected in `folder`, and the
    report of loading it."""
    import torch
    from safetensors.torch import load_file

    import encoders_fast.models as ours
    from tests.closeness import relative_error

    expected = load_file(folder / EXPECTED)
    load = getattr(ours, name).from_pretrained
    model, report = load(folder, dtype=dtype, keep_padding=True, output_loading_info=True)
    with torch.no_grad():
        output = model(**{key: value for key, value in expected.items() if not key.startswith("output")})
    pairs = ((key.removeprefix("output "), value) for key, value in expected.items() if key.startswith("output"))
    return {key: relative_error(output[key], value) for key, value in pairs}, report


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["save", folder]:
            save(Path(folder), cases())
        case ["keep"]:
            save(KEPT, kept())
        case ["compare", folder]:
            sys.exit(not compare(Path(folder)))
        case _:
            sys.exit(__doc__)
