"""Subword regularization: the same text, cut into other pieces every time."""

import collections
import pickle

import pytest
import sentencepiece

import encoders_fast.models as ours
from tests.golden.make_golden_tokenizers import train_sentencepiece

NAMES = ("FNetTokenizer", "BigBirdTokenizer")
TEXT = "unaffable dogs in France"
DRAWS = 200


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("sampling") / "spiece.model"
    train_sentencepiece(path, special=True)
    return path


@pytest.fixture(autouse=True)
def _seeded():
    sentencepiece.set_random_generator_seed(0)


def _draws(tokenizer, draws=DRAWS):
    return collections.Counter(tuple(tokenizer.tokenize(TEXT)) for _ in range(draws))


@pytest.mark.parametrize("name", NAMES)
def test_every_draw_is_the_same_text(name, model):
    tokenizer = getattr(ours, name)(model, sp_model_kwargs={"enable_sampling": True, "nbest_size": -1, "alpha": 0.1})
    draws = _draws(tokenizer)
    assert len(draws) > DRAWS / 4
    for tokens in draws:
        ids = tokenizer.convert_tokens_to_ids(list(tokens))
        assert tokenizer.convert_tokens_to_string(list(tokens)) == TEXT
        assert tokenizer.decode(tokenizer.build_inputs_with_special_tokens(ids), skip_special_tokens=True) == TEXT
    calls = {tuple(tokenizer(TEXT)["input_ids"]) for _ in range(20)}
    assert len(calls) > 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"enable_sampling": False, "nbest_size": -1, "alpha": 0.1},
        {"enable_sampling": True, "nbest_size": 1, "alpha": 0.1},
    ],
)
def test_without_sampling_every_draw_is_the_best(name, options, model):
    plain = getattr(ours, name)(model)
    draws = _draws(getattr(ours, name)(model, sp_model_kwargs=options), 20)
    assert list(draws) == [tuple(plain.tokenize(TEXT))]


@pytest.mark.parametrize("name", NAMES)
def test_options_of_sampling(name, model):
    best = tuple(getattr(ours, name)(model).tokenize(TEXT))

    def draws(**options):
        return _draws(getattr(ours, name)(model, sp_model_kwargs={"enable_sampling": True, **options}))

    # A larger alpha sharpens the distribution, and a small nbest_size leaves few to draw from.
    assert draws(nbest_size=-1, alpha=2.0)[best] > 2 * draws(nbest_size=-1, alpha=0.1)[best] + DRAWS / 10
    assert 1 < len(draws(nbest_size=3, alpha=0.1)) <= 3


@pytest.mark.parametrize("name", NAMES)
def test_sampling_survives_saving_and_pickling(name, model, tmp_path):
    options = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    tokenizer = getattr(ours, name)(model, sp_model_kwargs=options)
    tokenizer.save_pretrained(tmp_path)
    for other in (type(tokenizer).from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert other.sp_model_kwargs == options
        assert len(_draws(other)) > DRAWS / 4
    plain = type(tokenizer).from_pretrained(tmp_path, sp_model_kwargs={})
    assert len(_draws(plain, 20)) == 1
