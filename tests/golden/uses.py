"""What is done with a model to get golden numbers out of it, and the weights and inputs it gets.

Nothing here knows which library the model is from. Weights and inputs come from numpy's RandomState, whose stream is
frozen for good, seeded by a name: they need not be stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Results = dict[str, Tensor]
Use = Callable[[Any], Results]
"""From a model to the results that are compared, by name."""

TOKENS = 11
ENCODER_TOKENS = 7


# ---- numbers out of names -------------------------------------------------------------------------------------------


def noise(name: str, *shape: int) -> Tensor:
    """Standard normal, float64 that float32 holds exactly."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).double()


def integers(name: str, low: int, high: int, *shape: int) -> Tensor:
    """From `low` to `high` - 1, int64."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).randint(low, high, shape).astype("int64"))


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Values that make every parameter matter, by its name alone, and the same in float32 and float64."""
    for name, parameter in model.named_parameters():
        values = noise(name, *parameter.shape)
        is_scale = name.lower().replace("_", "").endswith("layernorm.weight")
        values = 1 + 0.3 * values if is_scale else values * (0.3 if parameter.dim() == 1 else 0.2)
        parameter.copy_(values.float())


def inputs(config: Any, B: int = 2, T: int = TOKENS) -> dict[str, Tensor]:
    """Random ids; but for the first, sequences end in padding."""
    ids = integers("input_ids", 3, config.vocab_size, B, T)
    attention_mask = torch.ones_like(ids)
    attention_mask[1:, T - T // 4 :] = 0
    return {
        "input_ids": ids.masked_fill(attention_mask == 0, config.pad_token_id),
        "attention_mask": attention_mask,
        "token_type_ids": integers("token_type_ids", 0, config.type_vocab_size, B, T),
    }


def head_mask(model: Any, per_layer: bool) -> Tensor:
    """[H] or [layers, H]: a head that is off, and factors that are neither 0 nor 1. A leaf that wants its gradient."""
    config = model.config
    shape = (config.num_hidden_layers, config.num_attention_heads) if per_layer else (config.num_attention_heads,)
    mask = 1 + 0.5 * noise("head_mask", *shape)
    mask[..., 1] = 0
    return mask.to(model.dtype).requires_grad_()


# ---- what is kept of the outputs ------------------------------------------------------------------------------------


def along(tensor: Tensor, name: str) -> Tensor:
    """The last dimension times a fixed random vector: it sees every number and keeps the file small."""
    return tensor @ noise(name, tensor.shape[-1]).to(tensor.dtype)


def kept(output: Any) -> Results:
    """Every tensor of a model's output; [..., T, D] is taken along D."""
    found = {name: value for name, value in output.items() if isinstance(value, Tensor)}
    return {name: along(value, name) if value.dim() > 2 else value for name, value in found.items()}


def gradients(model: Any, output: Any) -> Results:
    """Of a random linear function of the output: for the words, one number each, and one for every parameter."""
    results = [value for name, value in output.items() if isinstance(value, Tensor) and value.requires_grad]
    sum((value * noise(f"d{i}", *value.shape).to(value.dtype)).sum() for i, value in enumerate(results)).backward()
    parameters = {
        name: parameter.grad * noise(f"d {name}", *parameter.shape).to(parameter.dtype)
        for name, parameter in sorted(model.named_parameters())
        if parameter.grad is not None
    }
    return {
        "word gradients": along(model.get_input_embeddings().weight.grad, "word gradients"),
        "parameter gradients": torch.stack([value.sum() for value in parameters.values()]),
    }


# ---- uses of a model ------------------------------------------------------------------------------------------------


def encode(T: int = TOKENS) -> Use:
    """The outputs for T tokens."""

    def use(model: Any) -> Results:
        with torch.no_grad():
            return kept(model(**inputs(model.config, T=T)))

    return use


def differentiate(T: int = TOKENS) -> Use:
    """The outputs for T tokens, and gradients."""

    def use(model: Any) -> Results:
        output = model(**inputs(model.config, T=T))
        return {**kept(output), **gradients(model, output)}

    return use


def mask_heads(model: Any) -> Results:
    """With one factor for each head, and with one for each head of each layer."""
    results: Results = {}
    for per_layer in (False, True):
        mask = head_mask(model, per_layer)
        model.zero_grad()
        output = model(**inputs(model.config), head_mask=mask)
        found = {**kept(output), **gradients(model, output), "head_mask gradient": mask.grad}
        results |= {f"{'layers' if per_layer else 'heads'} {name}": value for name, value in found.items()}
    return results


def prune_heads(model: Any) -> Results:
    """In two steps: the second counts heads as they were before the first."""
    dtype = model.dtype
    model.prune_heads({0: [1]})
    model.prune_heads({0: [0, 2], 1: [3]})
    return differentiate()(model.to(dtype))  # in 4.57 what is left is float32


def answer(T: int = TOKENS) -> Use:
    """Question lengths given, inferred from the first separator, and without any separator."""

    def use(model: Any) -> Results:
        given = inputs(model.config, T=T)
        separator = model.config.sep_token_id
        ids = given["input_ids"].masked_fill(given["input_ids"] == separator, separator + 1)
        separated = ids.clone()
        separated[0, 4] = separated[0, 8] = separated[1, 6] = separator
        types = given.pop("token_type_ids")
        spans = {"start_positions": torch.tensor([6, T]), "end_positions": torch.tensor([8, T + 5])}
        questions = {
            "given": {"input_ids": ids, "question_lengths": torch.tensor([[5], [3]])},
            "inferred": {"input_ids": separated},
            "inferred, with types": {"input_ids": separated, "token_type_ids": types},
            "no separator": {"input_ids": ids},
        }
        results: Results = {}
        for question, options in questions.items():
            with torch.no_grad():
                output = model(**{**given, **options}, **spans)
            for name, value in kept(output).items():
                # A question's tokens are 1e6 below the others, beside which all errors would be small.
                results[f"{question} {name}"] = value.masked_fill(value < -1e5, -10.0)
        return results

    return use


def as_tuples(cache: Any) -> tuple[tuple[Tensor, ...], ...]:
    """The keys and values of a cache as caches were before they were classes: a tuple of 2 or 4 tensors a layer."""
    if isinstance(cache, tuple):
        return cache
    if not hasattr(cache, "cross_attention_cache"):
        return tuple((layer.keys, layer.values) for layer in cache.layers if layer.keys is not None)
    own, cross = as_tuples(cache.self_attention_cache), as_tuples(cache.cross_attention_cache)
    return tuple(map(tuple.__add__, own, cross)) if cross else own


def encoder_states(model: Any, sign: float = 1.0) -> dict[str, Tensor]:
    """What a decoder attends to: two sequences, the second padded; nothing for one that cannot."""
    if not model.config.add_cross_attention:
        return {}
    mask = torch.ones(2, ENCODER_TOKENS, dtype=torch.long)
    mask[1, 4:] = 0
    states = sign * noise("encoder_hidden_states", 2, ENCODER_TOKENS, model.config.hidden_size)
    return {"encoder_hidden_states": states.to(model.dtype), "encoder_attention_mask": mask}


def decode(model: Any) -> Results:
    """At once; then a prompt padded on the left, one token after it and two more, with tuples in between.

    The encoder's keys are in the cache then, and the encoder's states no longer matter: others are given. A padded
    token sees no token at all, and what each attention function makes of that is left out."""
    ids = integers("input_ids", 3, model.config.vocab_size, 2, TOKENS)
    mask = torch.ones_like(ids)
    padded = 3
    ids[1, :padded], mask[1, :padded] = model.config.pad_token_id, 0
    prompt = TOKENS - 3
    results: Results = {}
    with torch.no_grad():
        results |= _part("at once", model(ids, attention_mask=mask, use_cache=False, **encoder_states(model)))
        past = None
        for start, end in ((0, prompt), (prompt, prompt + 1), (prompt + 1, TOKENS)):
            output = model(
                ids[:, start:end],
                attention_mask=mask[:, :end],
                past_key_values=past,
                use_cache=True,
                **encoder_states(model, sign=-1.0 if start else 1.0),
            )
            past = as_tuples(output.past_key_values)
            results |= _part(f"to {end}", output)
    for i, layer in enumerate(past or ()):
        results |= {f"cache {i}.{j}": along(tensor, f"cache {j}") for j, tensor in enumerate(layer)}
    for name in results:
        if name.startswith(("at once", f"to {prompt}")) or name.endswith((".0", ".1")):
            results[name][1, ..., :padded] = 0
    return results


def decode_one_by_one(model: Any) -> Results:
    """At once and without a cache; then token by token, with tuples in between.

    One token at a time for relative positions: given several and a cache, an empty one too, 4.57 takes the last
    token's distances for all of them, and disagrees with itself without a cache."""
    ids = integers("input_ids", 3, model.config.vocab_size, 2, TOKENS)
    results: Results = {}
    with torch.no_grad():
        results |= _part("at once", model(ids, use_cache=False, **encoder_states(model)))
        past, steps = None, []
        for i in range(TOKENS):
            output = model(ids[:, i : i + 1], past_key_values=past, use_cache=True, **encoder_states(model))
            past = as_tuples(output.past_key_values)
            steps.append(along(output.logits, "logits"))
    return {**results, "steps": torch.cat(steps, dim=1)}


def decode_with_masked_heads(model: Any) -> Results:
    """A head that is masked is masked in both attentions of a layer."""
    mask = head_mask(model, per_layer=True)
    output = model(**inputs(model.config), head_mask=mask, use_cache=False, **encoder_states(model))
    return {**kept(output), **gradients(model, output), "head_mask gradient": mask.grad}


def _part(use: str, output: Any) -> Results:
    return {f"{use} {name}": value for name, value in kept(output).items()}
