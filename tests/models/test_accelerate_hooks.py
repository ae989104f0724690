"""Who looks at modules of an accelerated model sees what there was to see before."""

import inspect

import pytest
import torch
from transformers.models.big_bird import modeling_big_bird

from encoders_fast import accelerate, explain, restore
from tests.models.live_cases import BACKBONES, assert_same, inputs_of, live, ops_of, ops_run_by, title

each_backbone = pytest.mark.parametrize(("name", "options"), BACKBONES, ids=title)
ATTENDING = [case for case in BACKBONES if not case[0].startswith("FNet")]
ON_DEMAND = "output_attentions" in inspect.signature(modeling_big_bird.BigBirdAttention.forward).parameters


def shapes(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if ON_DEMAND and isinstance(value, tuple):  # probabilities that nobody asked for may be left out
        value = value[:1]
    return [shapes(each) for each in value] if isinstance(value, (tuple, list)) else type(value).__name__


KINDS = {
    "forward": lambda module, tell: module.register_forward_hook(lambda _, args, out: tell(shapes(out))),
    "forward_pre": lambda module, tell: module.register_forward_pre_hook(
        lambda _, args, kwargs: tell((shapes(args), sorted(kwargs))), with_kwargs=True
    ),
    "backward": lambda module, tell: module.register_full_backward_hook(lambda _, dx, dy: tell(shapes(dy))),
    "backward_pre": lambda module, tell: module.register_full_backward_pre_hook(lambda _, dy: tell(shapes(dy))),
}


def observe(model, paths, kinds=("forward_pre", "forward")):
    """Hooks on these modules; what they see, in order."""
    seen = []
    for path in paths:
        for kind in kinds:
            KINDS[kind](model.get_submodule(path), lambda what, path=path, kind=kind: seen.append((path, kind, what)))
    return seen


@each_backbone
def test_hooks_everywhere_see_what_they_saw(name, options):
    plain, model = live(name, **options), accelerate(live(name, **options))
    paths = [path for path, module in plain.named_modules() if path and type(module) is not torch.nn.ModuleList]
    seen = [observe(each, paths) for each in (plain, model)]
    inputs = inputs_of(name, plain)
    assert_same(model, plain, inputs)
    assert seen[1] == seen[0]
    assert len(seen[0]) > 20


@each_backbone
@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_hook_everywhere(name, options, kind):
    plain, model = live(name, **options), accelerate(live(name, **options))
    # What is in front of the layers has inputs without gradients, which torch warns of.
    paths = [path for path, _ in plain.named_modules() if path.startswith("encoder.layer.")]
    paths = [path for path in paths if type(plain.get_submodule(path)) is not torch.nn.ModuleList]
    seen = [observe(each, paths, [kind]) for each in (plain, model)]
    inputs = inputs_of(name, plain)
    for each in (plain, model):
        each(**inputs)[0].square().sum().backward()
    assert seen[1] == seen[0]
    assert len(seen[0]) > 10
    assert ops_run_by(model, **inputs) < ops_of(name, options)


@each_backbone
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "forward"])
def test_one_hook_on_one_bypassed_module(name, options, kind):
    model = accelerate(live(name, **options))
    places = {"FNetModel": "fourier.output.LayerNorm", "MobileBertModel": "output.LayerNorm"}
    module = model.encoder.layer[0].get_submodule(places.get(name, "attention.output.dropout"))
    seen = []
    KINDS[kind](module, seen.append)
    model(**inputs_of(name, model))[0].square().sum().backward()
    assert len(seen) == 1
    assert explain(model).refused


@each_backbone
def test_hooks_on_one_kind_of_module(name, options):
    paths = [path for path, _ in live(name, **options).named_modules() if "0" in path.split(".")]
    paths += [path.replace("layer.0", "layer.1") for path in paths if "norm" in path.lower()]
    for path in paths:
        plain, model = live(name, **options), accelerate(live(name, **options))
        seen = [observe(each, [path]) for each in (plain, model)]
        assert_same(model, plain, inputs_of(name, plain))
        assert seen[1] == seen[0], path


@each_backbone
def test_a_hook_that_changes_the_output(name, options):
    plain, model = live(name, **options), accelerate(live(name, **options))
    for each in (plain, model):
        each.encoder.layer[0].register_forward_hook(
            lambda _, args, out: (out[0] * 0.5, *out[1:]) if isinstance(out, tuple) else out * 0.5
        )
    assert_same(model, plain, inputs_of(name, plain))


@each_backbone
def test_hooks_come_and_go(name, options):
    model = accelerate(live(name, **options))
    handles = [each.register_forward_hook(lambda *_: None) for each in model.modules()]
    assert "bottleneck_ffn" not in ops_run_by(model, **inputs_of(name, model))
    for handle in handles:
        handle.remove()
    assert ops_run_by(model, **inputs_of(name, model)) == ops_of(name, options)


@pytest.mark.parametrize(("name", "options"), ATTENDING, ids=title)
def test_attentions_and_hidden_states(name, options):
    options = {**options, "attn_implementation": "eager"}
    plain, model = live(name, **options), accelerate(live(name, **options))
    inputs = inputs_of(name, plain)
    with torch.no_grad():
        asked = {"output_attentions": True, "output_hidden_states": True}
        expected, outputs = plain(**inputs, **asked), model(**inputs, **asked)
        assert len(outputs.attentions) == plain.config.num_hidden_layers
        for key in ("attentions", "hidden_states"):
            for actual, right in zip(outputs[key], expected[key], strict=True):
                torch.testing.assert_close(actual, right, rtol=1e-4, atol=1e-5)
    assert ops_run_by(model, **inputs) == ops_of(name, options)  # asking once does not make it slow for good
    assert ops_run_by(model, **inputs, output_hidden_states=True) == ops_of(name, options)
    late = live(name, **options)
    late(**inputs, **asked)
    assert ops_run_by(accelerate(late, strict=True), **inputs) == ops_of(name, options)
    assert not ops_run_by(restore(late), **inputs)
