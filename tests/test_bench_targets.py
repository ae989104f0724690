"""The bench harness: targets of every kind, cases that take long, and curves."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

if not (Path(__file__).parents[1] / "bench").is_dir():
    pytest.skip("bench/ is not part of this installation", allow_module_level=True)

from tests.harness import EXPECTED, ONES, Benchmark, case, lines_of, sleeping  # isort: split

from bench import conftest, measure, readme, results, table, targets
from bench.contender import Contender, Expected, Limit, Target
from encoders_fast import _machine
from encoders_fast.ops import packed_bytes, packed_linear

# ---- cases that take long --------------------------------------------------------------------------------------------


def test_a_case_with_rounds_of_its_own_has_no_warm_up_beside_its_check():
    calls = []
    benchmark = Benchmark()
    record = measure.run(benchmark, case(sleeping("ours", 0.0, calls), rounds=2), seconds=60.0)
    assert (benchmark.rounds, record["rounds"], len(calls)) == (2, 2, 3)


def test_nothing_beyond_the_check_and_one_round_where_nothing_is_timed():
    calls = []
    measure.run(Benchmark(disabled=True), case(sleeping("ours", 0.0, calls, memory=True), rounds=9), seconds=60.0)
    assert len(calls) == 2


def test_what_is_checked_may_be_another_call():
    wrong = sleeping("ours", 0.0, check=lambda: ONES * 1.01)
    with pytest.raises(AssertionError, match="ours: relative L2 error"):
        measure.run(Benchmark(), case(wrong), seconds=0.0)
    right = Contender("ours", lambda: torch.ones(5), check=lambda: ONES, expected=EXPECTED)
    assert lines_of(measure.run(Benchmark(), case(right), seconds=0.0))["ours"]["error"] == 0.0


@pytest.mark.parametrize(("disabled", "marked"), [(True, True), (True, False), (False, True)])
def test_long_benches_are_left_out_of_a_quick_check(disabled, marked):
    config = SimpleNamespace(getoption=lambda name: {"benchmark_disable": disabled}[name])
    item = SimpleNamespace(config=config, get_closest_marker=lambda name: name == "long" and marked)
    if disabled and marked:
        with pytest.raises(pytest.skip.Exception, match="takes long"):
            conftest.pytest_runtest_setup(item)
    else:
        conftest.pytest_runtest_setup(item)


@pytest.mark.skipif(_machine.peak_memory(lambda: None) is None, reason="the kernel does not tell peak memory here")
def test_extra_memory_counts_packed_weights_for_each_who_has_them():
    weight, x = torch.randn(4096, 1024), torch.randn(2, 1024)
    exact = x.double() @ weight.double().T
    with torch.inference_mode():
        packed_linear(x, weight)
    if not packed_bytes():
        pytest.skip("no backend packs here")

    def contender(name):
        expected = (Expected(exact, 1e-5),)
        return Contender(name, lambda: packed_linear(x, weight), expected=expected, memory=True)

    lines = lines_of(measure.run(Benchmark(), case(contender("other"), contender("ours")), seconds=0.0))
    for line in lines.values():
        # Packing may hold a copy for a moment. The kernel counts in pages, and some of them late.
        assert 0.9 * weight.nbytes < line["extra_memory"] < 3 * weight.nbytes


def test_memory_of_the_machine():
    assert _machine.memory_bytes() > 2**27


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_a_contender_may_have_several_targets():
    contender = Contender(
        "ours", lambda: None, "stock", (Target("stock", 6.0), Limit("median", 2.0), Target("full", 3.5))
    )
    found = targets.in_record(contender, {"ours": 1.0, "stock": 7.0, "full": 3.0})
    assert [wanted.get("met") for wanted in found] == [True, None, False]
    text = targets.speed({"baseline": "stock", "targets": found})
    assert text == "target 6x: met, target 3.5x full: missed at 3.00x"


def test_a_target_against_one_who_is_absent_is_none():
    contender = Contender("ours", lambda: None, target=Target("stock", 6.0))
    assert targets.in_record(contender, {"ours": 1.0}) == []
    assert targets.speed({"targets": []}) == ""


def point(name, median=None, memory=None, limits=()):
    """A record of a curve."""
    ours = {"name": "ours", "median": median, "spread": 0.0, "extra_memory": memory, "weights": 500_000_000}
    ours["targets"] = targets.in_record(Contender("ours", lambda: None, target=tuple(limits)), {})
    peer = (
        {"name": "stock", "median": 2.0, "spread": 0.0} if int(name) < 100 else {"name": "stock", "absent": "too long"}
    )
    record = {"group": "length", "case": name, "axis": "tokens", "rounds": 1, "others_load": 0.0}
    return record | {"contenders": [ours, peer]}


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (Limit("median", 4.6, of="50"), "time at most 4.6x that of 50: met at 4.60x"),
        (Limit("median", 4.5, of="50"), "time at most 4.5x that of 50: missed at 4.60x"),
        (Limit("median", 4.5, of="60"), "time at most 4.5x that of 60: not measured"),
        (Limit("median", 5.0), "time at most 5.00 s: met at 4.60 s"),
        (Limit("extra_memory", 0.9e9), "extra memory at most 900.0 MB: missed at 1.20 GB"),
        (Limit("extra_memory", 2.0, of="50"), "extra memory at most 2x that of 50: met at 2.00x"),
        (Limit("memory", 8e9), "extra memory and weights at most 8.00 GB: met at 1.70 GB"),
    ],
    ids=str,
)
def test_limits(limit, words):
    records = [point("50", 1.0, 600_000_000), point("200", 4.6, 1_200_000_000, [limit])]
    assert targets.limits(records) == [f"ours, 200 tokens: {words}."]


def test_a_limit_is_not_rounded_down():
    records = [point("50", 1.0, 1), point("200", 4.6001, 1, [Limit("median", 4.6, of="50")])]
    assert targets.limits(records)[0].endswith("missed at 4.61x.")


# ---- curves ----------------------------------------------------------------------------------------------------------

POINTS = [point("200", 4.6, 1_200_000_000, [Limit("extra_memory", 0.9e9)]), point("50", 1.0, 600_000)]


def test_a_curve_is_one_table_in_the_terminal():
    assert table.terminal(POINTS) == [
        "",
        "length",
        "  tokens    ours    memory     stock",
        "  50      1.00 s   +0.6 MB    2.00 s",
        "  200     4.60 s  +1.20 GB  too long",
        "  ours, 200 tokens: extra memory at most 900.0 MB: missed at 1.20 GB.",
    ]


def test_a_curve_is_one_table_in_the_readme(tmp_path):
    (tmp_path / "README.md").write_text("<!-- results: length | ours, stock -->\n<!-- end of results -->\n")
    results.save(POINTS, tmp_path, "Some CPU, 2 threads")
    assert readme.main([], tmp_path, tmp_path) == 0
    lines = (tmp_path / "README.md").read_text().splitlines()
    table_lines = [
        "| tokens | ours | memory | stock | memory |",
        "| --- | --- | --- | --- | --- |",
        "| 50 | 1.00 s | +0.6 MB | 2.00 s |  |",
        "| 200 | 4.60 s | +1.20 GB | too long |  |",
    ]
    assert [line for line in lines if line.startswith("|")] == table_lines
    assert "ours, 200 tokens: extra memory at most 900.0 MB: missed at 1.20 GB." in lines


def test_big_bird_over_length(monkeypatch):
    transformers = pytest.importorskip("transformers")
    from bench.models import bench_big_bird_lengths as bench

    monkeypatch.setattr(_machine, "memory_bytes", lambda: 24_000_000_000)
    assert bench.why_not(12, 4096) is None
    assert bench.why_not(12, 8192) == "not measured: takes minutes"
    assert bench.why_not(12, 16384) == "needs 25.77 GB, there is 24.00 GB"
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
    model = transformers.BigBirdModel(transformers.BigBirdConfig(num_hidden_layers=3, **shape))
    first = bench.first_layer(model)
    assert (len(first.encoder.layer), first.config.num_hidden_layers) == (1, 1)
    assert (len(model.encoder.layer), model.config.num_hidden_layers) == (3, 3)
    assert first.encoder.layer[0].output.dense.weight is model.encoder.layer[0].output.dense.weight
