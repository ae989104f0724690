"""Whether the installed transformers still has the defects that ours is without. One that is gone is skipped, with a
sentence that says so: nothing of ours is wrong then, but README's table is."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.closeness import relative_error
from tests.models.model_cases import config, randomize
from tests.models.test_known_defects import SPARSE, one_process  # noqa: F401  a fixture

T = 30
DEFECTS: dict[str, Callable[[], bool]] = {}


def defect(function):
    DEFECTS[function.__name__] = function
    return function


def stock(name, **options):
    model = getattr(transformers, name)(config(name, transformers, **options))
    randomize(model)
    return model.eval()


def ids(B=2, tokens=T):
    return torch.randint(4, 99, (B, tokens), generator=torch.Generator().manual_seed(5))


def raises(function) -> bool:
    try:
        function()
    except Exception:
        return True
    return False


def differ(actual, expected) -> bool:
    return relative_error(actual, expected) > 1e-3


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that any operator gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


# ---- all families ---------------------------------------------------------------------------------------------------


@defect
def buffers_without_values():
    model = stock("BigBirdModel")
    with torch.device("meta"):
        twin = transformers.BigBirdModel(model.config).eval()
    twin.to_empty(device="cpu")
    for buffer in twin.buffers():
        buffer.fill_(2)
    twin.load_state_dict(model.state_dict())
    return differ(twin(ids())[0], model(ids())[0])


@defect
def parameters_that_a_distributed_model_waits_for():
    model = DistributedDataParallel(stock("FNetForMaskedLM").train())
    inputs = {"input_ids": ids(), "labels": ids()}
    model(**inputs).loss.backward()
    return raises(lambda: model(**inputs))


@defect
def misspelt_keyword_is_accepted():
    return not raises(lambda: stock("RobertaPreLayerNormForMaskedLM")(ids(), atention_mask=None))


@defect
def chunks_must_divide_the_length():
    return raises(lambda: stock("RobertaPreLayerNormModel", chunk_size_feed_forward=7)(ids()))


@defect
def int32_labels_are_refused():
    return raises(lambda: stock("XLMRobertaXLForMaskedLM")(ids(), labels=ids().int()))


@defect
def configured_tuples_fail():
    model = stock("BigBirdForMaskedLM")
    model.config.return_dict = False
    return raises(lambda: model(ids()))


@defect
def no_attentions_without_eager():
    model = stock("RobertaPreLayerNormModel", attn_implementation="sdpa")
    return not model(ids(), output_attentions=True).attentions


@defect
def head_mask_has_no_effect():
    model = stock("XLMRobertaXLModel")
    return torch.equal(model(ids(), head_mask=torch.tensor([0.0, 1, 1, 1]))[0], model(ids())[0])


@defect
def heads_cannot_be_pruned():
    return raises(lambda: stock("MobileBertModel").prune_heads({0: [1]}))


@defect
def activation_by_function_is_refused():
    return raises(lambda: config("FNetModel", transformers, hidden_act=F.relu))


@defect
def question_answering_is_built_for_three_labels():
    return not raises(lambda: stock("MobileBertForQuestionAnswering", num_labels=3))


# ---- BigBird --------------------------------------------------------------------------------------------------------


@defect
def big_bird_seeds_numpy():
    np.random.seed(11)
    before = np.random.get_state()[1].copy()
    stock("BigBirdModel", **SPARSE).train()(ids())
    return bool((np.random.get_state()[1] != before).any())


@defect
def big_bird_goes_on_with_full_attention():
    model = stock("BigBirdModel", **SPARSE)
    before = model(ids())[0]
    model(ids(tokens=8))
    return differ(model(ids())[0], before)


@defect
def big_bird_shows_its_padding():
    return stock("BigBirdModel", **SPARSE)(ids(tokens=29), output_hidden_states=True).hidden_states[0].shape[1] == 30


@defect
def big_bird_counts_the_first_block_again():
    sums = stock("BigBirdModel", **SPARSE)(ids(), output_attentions=True).attentions[0].sum(-1)
    return differ(sums, torch.ones_like(sums))


@defect
def big_bird_decoder_sees_what_follows():
    model, other = stock("BigBirdForCausalLM", **SPARSE), ids()
    other[:, -1] = 3
    return differ(model(other).logits[:, :20], model(ids()).logits[:, :20])


@defect
def big_bird_caches_nothing():
    return stock("BigBirdForCausalLM", **SPARSE)(ids(), use_cache=True).past_key_values.get_seq_length() == 0


@defect
def big_bird_decoder_sees_the_encoder_instead_of_itself():
    model, other = stock("BigBirdForCausalLM", add_cross_attention=True), ids()
    encoder = {"encoder_hidden_states": torch.randn(2, 5, 32)}
    other[:, 0] = 3
    return torch.equal(model(other, **encoder).logits[:, 1:], model(ids(), **encoder).logits[:, 1:])


@defect
def big_bird_needs_random_blocks():
    return raises(lambda: stock("BigBirdModel", **SPARSE | {"num_random_blocks": 0})(ids()))


@defect
def big_bird_drops_no_attention():
    model = stock("BigBirdModel", **SPARSE, attention_probs_dropout_prob=0.5).train()
    return torch.equal(model(ids())[0], model(ids())[0])


@defect
def big_bird_fills_a_tensor_of_all_pairs():
    model = stock("BigBirdModel", **SPARSE, max_position_embeddings=256)
    with torch.no_grad(), Largest() as largest:
        model(ids(tokens=256))
    return largest.elements >= 2 * 4 * 256 * 256


# ---- FNet -----------------------------------------------------------------------------------------------------------


@defect
def fnet_knows_no_half_precision():
    return all(raises(partial(stock("FNetModel").to(dtype), ids())) for dtype in (torch.bfloat16, torch.float16))


@defect
def fnet_mixes_padding():
    model, padded = stock("FNetModel"), ids()
    padded[:, 20:] = model.config.pad_token_id
    return differ(model(padded)[0][:, :20], model(padded[:, :20])[0])


@defect
def fnets_tpu_options_are_for_one_length():
    return raises(lambda: stock("FNetModel", use_tpu_fourier_optimizations=True, tpu_short_seq_length=16)(ids()))


# ---- MobileBERT -----------------------------------------------------------------------------------------------------


@defect
def mobilebert_sees_padding_beside_a_word():
    model, padded, mask = stock("MobileBertModel"), ids(), torch.ones(2, T)
    padded[:, 20:], mask[:, 20:] = model.config.pad_token_id, 0
    return differ(model(padded, attention_mask=mask)[0][:, :20], model(padded[:, :20])[0])


@defect
def mobilebert_without_shared_bottlenecks_fails():
    return raises(lambda: stock("MobileBertModel", key_query_shared_bottleneck=False)(ids()))


@defect
def mobilebert_joins_the_heads_matrices():
    model = stock("MobileBertForMaskedLM", vocab_size=5000)
    with torch.no_grad(), Largest() as largest:
        model(ids(1, 4))
    return largest.elements >= 32 * 5000


# ---- RoBERTa-PreLayerNorm and XLM-RoBERTa-XL ------------------------------------------------------------------------


@defect
def generation_counts_positions_from_0():
    model = stock("XLMRobertaXLForCausalLM")
    options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    first = model.generate(ids(), attention_mask=torch.ones_like(ids()), pad_token_id=1, **options).logits[0]
    return differ(first, model(ids()).logits[:, -1])


@defect
def positions_of_embeddings_begin_anew():
    model = stock("RobertaPreLayerNormForCausalLM")
    embeds = model.get_input_embeddings()(ids())
    cache = model(inputs_embeds=embeds[:, :20], use_cache=True).past_key_values
    return differ(model(inputs_embeds=embeds[:, 20:], past_key_values=cache).logits, model(ids()).logits[:, 20:])


@defect
def cached_steps_count_padding():
    model, padded, mask = stock("RobertaPreLayerNormForCausalLM"), ids(), torch.ones(2, T)
    padded[:, :5], mask[:, :5] = 1, 0
    cache = model(padded[:, :20], attention_mask=mask[:, :20], use_cache=True).past_key_values
    last = model(padded[:, 20:], attention_mask=mask, past_key_values=cache).logits
    return differ(last, model(padded[:, 5:]).logits[:, 15:])


@defect
def relative_positions_have_no_effect():
    model = stock("XLMRobertaXLModel", position_embedding_type="relative_key")
    return not any("distance_embedding" in name for name, _ in model.named_parameters())


@defect
def too_many_tokens_are_an_index_error():
    return raises(lambda: stock("XLMRobertaXLModel")(ids(tokens=63)))


@defect
def xlm_roberta_xl_drops_nothing_behind_its_feed_forward_block():
    return not any(
        isinstance(m, torch.nn.Dropout) for m in stock("XLMRobertaXLModel").encoder.layer[0].output.modules()
    )


@defect
def tuples_are_no_cache():
    past = ((torch.randn(2, 4, 3, 8),) * 2,) * 2
    return raises(lambda: stock("XLMRobertaXLForCausalLM")(ids(), past_key_values=past))


# ---- the test -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFECTS)
def test_transformers_still_has_it(name, one_process):  # noqa: F811
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of whatever version
        there = DEFECTS[name]()
    if not there:
        pytest.skip(f"transformers {transformers.__version__} does not have it")
