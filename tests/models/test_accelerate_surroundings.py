"""Accelerated models in other people's code: adapters, Trainer, compilers, copies, quantization, devices."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import Dataset

from encoders_fast import accelerate, explain, restore, verify
from tests.models.live_cases import (
    BACKBONES,
    CASES,
    SPARSE,
    TOKENS,
    assert_same,
    inputs_of,
    live,
    ops_of,
    ops_run_by,
    title,
)
from tests.models.model_cases import batch

each_model = pytest.mark.parametrize(("name", "options"), CASES, ids=title)
each_backbone = pytest.mark.parametrize(("name", "options"), BACKBONES, ids=title)
LINEARS = {"FNetModel": ["dense"]}  # that an adapter goes to; the others' are query and value


pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # others' use


# ---- copies, files, devices -----------------------------------------------------------------------------------------


@each_backbone
def test_copies(name, options):
    model = accelerate(live(name, **options))
    inputs = inputs_of(name, model)
    expected = model(**inputs)[0]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved_whole(model)):
        assert ops_run_by(copied, **inputs) == ops_of(name, options)
        assert torch.equal(copied(**inputs)[0], expected)
        copied.encoder.layer[0].output.dense.weight.data.mul_(2)
        assert not torch.equal(copied(**inputs)[0], expected)
        assert restore(copied) is copied
    assert torch.equal(model(**inputs)[0], expected)


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@each_model
def test_checkpoints(name, options, tmp_path):
    plain, model = live(name, **options), accelerate(live(name, **options))
    assert {key: value.data_ptr() for key, value in model.state_dict().items()}.keys() == plain.state_dict().keys()
    model.save_pretrained(tmp_path)
    assert_same(getattr(transformers, name).from_pretrained(tmp_path), plain, inputs_of(name, plain))
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_state_dict(plain.state_dict())
    assert_same(model, plain, inputs_of(name, plain))


@pytest.mark.parametrize("name", [name for name, _ in CASES if name.endswith(("MaskedLM", "CausalLM"))])
def test_ties_and_resizing(name):
    plain, model = live(name), accelerate(live(name))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for each in (plain, model):
        torch.manual_seed(0)
        each.resize_token_embeddings(103)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert_same(model, plain, inputs_of(name, plain))


@each_backbone
def test_moving(name, options):
    model = accelerate(live(name, **options))
    inputs = inputs_of(name, model)
    expected = model(**inputs)[0]
    back = copy.deepcopy(model).to("meta")
    assert all(parameter.is_meta for parameter in back.parameters())
    back = back.to_empty(device="cpu")
    back.load_state_dict(model.state_dict())
    for buffer, value in zip(back.buffers(), model.buffers(), strict=True):
        buffer.copy_(value)
    assert torch.equal(back(**inputs)[0], expected)
    assert ops_run_by(back.to(torch.float64), **inputs) == ops_of(name, options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@each_backbone
def test_moving_to_a_gpu(name, options):
    model = accelerate(live(name, **options))
    inputs = inputs_of(name, model)
    expected = model(**inputs)[0]
    there = {key: value.cuda() for key, value in inputs.items()}
    torch.testing.assert_close(model.cuda()(**there)[0].cpu(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.cpu()(**inputs)[0], expected)


@each_backbone
def test_offloaded_weights(name, options):
    offloading = pytest.importorskip("accelerate")
    plain, model = live(name, **options), accelerate(live(name, **options))
    offloading.cpu_offload(model, execution_device=torch.device("cpu"))
    assert_same(model, plain, inputs_of(name, plain))


@each_backbone
@pytest.mark.parametrize("first", ["accelerate", "dispatch"])
def test_dispatched(name, options, first):
    """accelerate's hooks hold the forward that they have replaced."""
    dispatching = pytest.importorskip("accelerate")
    plain, model = live(name, **options), live(name, **options)
    inputs, places = inputs_of(name, plain), {path: "cpu" for path, _ in plain.named_children()}
    if first == "accelerate":
        accelerate(model)
    dispatching.dispatch_model(model, places, main_device="cpu", force_hooks=True)
    accelerate(model)
    assert verify(model, **inputs).worst < 1e-4
    dispatching.hooks.remove_hook_from_submodules(model)
    assert_same(model, plain, inputs)
    assert ops_run_by(model, **inputs) == ops_of(name, options)
    assert len(explain(model).replaced) == len(explain(accelerate(plain)).replaced)
    dispatching.dispatch_model(model, places, main_device="cpu", force_hooks=True)
    assert_same(restore(model), restore(plain), inputs)
    dispatching.hooks.remove_hook_from_submodules(model)
    assert_same(model, plain, inputs)
    assert not ops_run_by(model, **inputs)


@each_backbone
def test_a_forward_of_ones_own(name, options):
    model = live(name, **options)
    layer = model.encoder.layer[0].output
    called, original = [], layer.forward
    layer.forward = lambda *args: called.append(1) or original(*args)
    assert not explain(accelerate(model)).replaced.keys() & {"encoder.layer.0.output", "encoder.layer.0"}
    model(**inputs_of(name, model))
    assert called
    restore(model)(**inputs_of(name, model))
    assert len(called) == 2


@pytest.mark.parametrize("family", ["RobertaPreLayerNorm", "XLMRobertaXL"])
@pytest.mark.parametrize("kept", [(0, 1, 3), (3, 0, 2, 1)], ids=str)
def test_layers_taken_out_and_put_in_another_order(family, kept):
    plain, model = (live(f"{family}Model", num_hidden_layers=4) for _ in range(2))
    for each in (plain, accelerate(model)):
        each.encoder.layer = torch.nn.ModuleList([each.encoder.layer[i] for i in kept])
    assert_same(model, plain, inputs_of(f"{family}Model", plain))


class Weight(torch.Tensor):
    """A tensor with behaviour of its own, as quantized ones are."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


NORMS = {
    "without a weight": lambda width: torch.nn.LayerNorm(width, elementwise_affine=False),
    "without a bias": lambda width: torch.nn.LayerNorm(width, bias=False),
    "over two dimensions": lambda width: torch.nn.LayerNorm((TOKENS, width)),
    "of another kind": torch.nn.RMSNorm,
    "with a weight of another kind": lambda width: with_weight(torch.nn.LayerNorm(width)),
}


def with_weight(norm):
    norm.weight = torch.nn.Parameter(torch.rand(norm.normalized_shape).as_subclass(Weight))
    return norm


@each_backbone
@pytest.mark.parametrize("kind", NORMS)
def test_other_norms(name, options, kind):
    plain, model = live(name, **options), accelerate(live(name, **options))
    norms = [path for path, module in plain.encoder.named_modules() if path.lower().endswith("norm")]
    for path in norms:
        parent, _, child = path.rpartition(".")
        width = plain.encoder.get_submodule(path).weight.shape[0]
        for each in (plain, model):
            torch.manual_seed(0)
            setattr(each.encoder.get_submodule(parent), child, NORMS[kind](width))
    assert explain(model).refused
    assert_same(model, plain, inputs_of(name, plain))


def test_linears_without_biases():
    plain, model = live("MobileBertModel"), accelerate(live("MobileBertModel"))
    for each in (plain, model):
        dense = each.encoder.layer[0].intermediate.dense
        dense.bias = None
    assert "other parameters than a weight and a bias" in explain(model).refused["encoder.layer.0"]
    assert_same(model, plain, inputs_of("MobileBertModel", plain))


@pytest.mark.parametrize("name", [name for name, _ in BACKBONES])
def test_strict_in_training_with_checkpointing(name):
    model = live(name).train()
    model.gradient_checkpointing_enable()
    assert accelerate(model, strict=True) is model


# ---- compilers ------------------------------------------------------------------------------------------------------


@each_backbone
def test_compiled(name, options):
    model = accelerate(live(name, **options))
    inputs = inputs_of(name, model)
    with torch.no_grad():
        expected = model(**inputs)[0]
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs)[0], expected, rtol=1e-4, atol=1e-5)
        assert accelerate(compiled, strict=True) is compiled
        assert restore(compiled) is compiled
        assert not explain(model).replaced


def test_compiled_before():
    plain, model = live("FNetModel"), live("FNetModel")
    inputs = inputs_of("FNetModel", plain)
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph

    with torch.no_grad():
        model.compile(backend=backend)
        assert_same(model, plain, inputs)
        assert "fourier_mixing_layer_norm" not in graphs[-1]
        assert_same(accelerate(model), plain, inputs)
        assert "fourier_mixing_layer_norm" in graphs[-1]


# ---- training and adapters ------------------------------------------------------------------------------------------


class Sentences(Dataset):
    def __init__(self, name, config):
        self.rows = batch(name, config, labels=True, B=8, T=TOKENS)

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {key: value[i] for key, value in self.rows.items()}


@pytest.mark.parametrize("family", ["BigBird", "FNet", "MobileBert", "RobertaPreLayerNorm", "XLMRobertaXL"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_trainer(family, checkpointing, tmp_path):
    name = f"{family}ForMaskedLM"
    options = SPARSE if family == "BigBird" else {}
    losses = []
    for prepare in (lambda model: model, accelerate):
        model = prepare(live(name, **options))
        arguments = transformers.TrainingArguments(
            tmp_path,
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        if checkpointing:
            model.gradient_checkpointing_enable()
        trainer = transformers.Trainer(model, arguments, train_dataset=Sentences(name, model.config))
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        assert ops_run_by(model, **batch(name, model.config, T=TOKENS)) == (
            set() if len(losses) == 1 else ops_of(name, options)
        )
    assert losses[0][-1] < losses[0][0]
    assert np.allclose(losses[0], losses[1], rtol=1e-3)


@each_backbone
@pytest.mark.parametrize("first", ["accelerate", "adapt"])
def test_adapters(name, options, first):
    peft = pytest.importorskip("peft")
    targets = LINEARS.get(name, ["query", "value"])
    model, plain = live(name, **options), live(name, **options)
    adapters = []
    for each in (plain, model):
        if each is model and first == "accelerate":
            accelerate(each)
        torch.manual_seed(0)
        adapter = peft.get_peft_model(each, peft.LoraConfig(target_modules=targets, init_lora_weights=False))
        adapters.append(adapter.eval())
    accelerate(adapters[1])
    inputs = inputs_of(name, model)
    assert_same(adapters[1], adapters[0], inputs)
    for adapter in adapters:
        adapter(**inputs)[0].square().sum().backward()
    pairs = [(a.grad, b.grad) for a, b in zip(*(each.parameters() for each in adapters), strict=True)]
    assert sum(a is not None for a, _ in pairs) >= 4
    for expected, grad in pairs:
        if expected is not None:
            torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    for adapter in adapters:
        adapter.merge_adapter()
    assert_same(adapters[1], adapters[0], inputs)
    merged = [adapter.unload() for adapter in adapters]
    assert_same(merged[1], merged[0], inputs)
    assert ops_run_by(merged[1], **inputs) == ops_of(name, options)


@pytest.mark.parametrize("name", [name for name, _ in CASES if name.endswith("CausalLM")])
def test_generation(name):
    plain, model = live(name), accelerate(live(name))
    ids = inputs_of(name, plain)["input_ids"][:, :7]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))


def test_cross_attention():
    for name in ("RobertaPreLayerNormForCausalLM", "XLMRobertaXLForCausalLM", "BigBirdForCausalLM"):
        plain, model = (
            live(name, add_cross_attention=True),
            accelerate(live(name, add_cross_attention=True), strict=True),
        )
        states, mask = torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.long)
        mask[1, 3:] = 0
        inputs = inputs_of(name, plain) | {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        assert_same(model, plain, inputs)
        assert ops_run_by(model, **inputs) == ops_of(name, {})


def test_training_leaves_numpys_generator_alone():
    model = accelerate(live("BigBirdModel", **SPARSE)).train()
    before = np.random.get_state()[1].copy()
    model(**inputs_of("BigBirdModel", model))
    assert np.array_equal(np.random.get_state()[1], before)


def test_no_tensor_of_all_pairs_of_tokens():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in torch.utils._pytree.tree_leaves(out):
                if isinstance(each, torch.Tensor):
                    self.elements = max(self.elements, each.numel())
            return out

    tokens = 512
    sizes = []
    for prepare in (lambda model: model, accelerate):
        model = prepare(live("BigBirdModel", **{**SPARSE, "block_size": 4}, max_position_embeddings=tokens))
        with torch.no_grad(), Largest() as largest:
            model(torch.ones(1, tokens, dtype=torch.long))
        sizes.append(largest.elements)
    assert sizes[1] < tokens**2
    assert sizes[1] <= sizes[0]


QUANTIZE = """
import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from encoders_fast import accelerate, explain
from tests.closeness import relative_error
from tests.models.live_cases import BACKBONES, inputs_of, live
from tests.models.model_cases import pair

for name, options in BACKBONES:
    plain, late, early = (live(name, **options) for _ in range(3))
    _, own = pair(name, **options)  # with the weights of the live ones
    accelerate(early)
    for model in (plain, late, early, own):
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    accelerate(late)
    inputs = inputs_of(name, plain)
    with torch.no_grad():
        expected, exact = plain(**inputs)[0], live(name, **options)(**inputs)[0]
        for label, model in {"late": late, "early": early, "own": own}.items():
            error, theirs = (relative_error(each, exact) for each in (model(**inputs)[0], expected))
            # Nor much less, which would be a model that is not quantized.
            assert theirs / 1.5 < error < 1.5 * theirs, (name, label, error, theirs)
        for model in (late, early):
            assert explain(model).replaced or name == "MobileBertModel"
    print(name, "quantized")
"""


def test_quantized_by_torchao():
    folder = Path(sys.prefix, "torchao")
    if not folder.exists():
        pytest.skip("torchao is not there: `make test` puts it into the environment's folder torchao")
    path = {"PYTHONPATH": f"{Path.cwd()}:{folder}"}
    run = subprocess.run([sys.executable, "-c", QUANTIZE], env=os.environ | path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("quantized") == len(BACKBONES)


def test_verify_after_all_that():
    for name, options in BACKBONES:
        model = accelerate(live(name, **options))
        inputs = inputs_of(name, model)
        model.train()(**inputs)[0].sum().backward()
        assert verify(model, **inputs).worst < 1e-4


@pytest.mark.filterwarnings("ignore")  # torch's own, of a module that it will move
@pytest.mark.parametrize("first", [True, False], ids=["quantized first", "accelerated first"])
@pytest.mark.parametrize("name", ["RobertaPreLayerNormModel", "XLMRobertaXLModel"])
@torch.no_grad()
def test_quantized_dynamically(name, first):
    """Such a layer's `weight` is a method."""
    plain, model = live(name), live(name)
    inputs = inputs_of(name, plain)
    steps = [lambda m: torch.ao.quantization.quantize_dynamic(m, {torch.nn.Linear}, inplace=True), accelerate]
    for step in steps if first else steps[::-1]:
        model = step(model)
    steps[0](plain)
    torch.testing.assert_close(model(**inputs)[0], plain(**inputs)[0], rtol=1e-3, atol=1e-3)
