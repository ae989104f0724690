"""The bench harness: it checks before it times, compares in one run, keeps what it does not measure anew."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not (Path(__file__).parents[1] / "bench").is_dir():
    pytest.skip("bench/ is not part of this installation", allow_module_level=True)

from tests.harness import EXPECTED, ONES, ROOT, Benchmark, case, lines_of, sleeping  # isort: split

from bench import gpu_kernels, measure, readme, results, table, targets, text
from bench.contender import Contender, Expected, Target
from bench.ops import bench_fourier_mixing
from bench.verify import check, expect
from encoders_fast import Backend, register_backend
from encoders_fast.ops.fourier_mixing import reference

# ---- measuring -------------------------------------------------------------------------------------------------------


def test_ratio_target_and_rates():
    stock = sleeping("stock", 0.02)
    ours = sleeping("ours", 0.002, baseline="stock", target=Target("stock", 3.0), bytes=2e6, flops=4e6)
    slow = sleeping("slow", 0.005, baseline="stock", target=Target("ours", 1.0))
    benchmark = Benchmark()
    lines = lines_of(measure.run(benchmark, case(stock, ours, slow), seconds=0.0))
    assert 5 < lines["ours"]["ratio"] < 10
    assert [wanted["met"] for wanted in lines["ours"]["targets"]] == [True]
    (missed,) = lines["slow"]["targets"]
    assert missed["met"] is False
    assert missed["reached"] == pytest.approx(lines["ours"]["median"] / lines["slow"]["median"])
    assert lines["ours"]["gb_per_s"] == pytest.approx(2e6 / lines["ours"]["median"] / 1e9)
    assert lines["ours"]["gflop_per_s"] == pytest.approx(4e6 / lines["ours"]["median"] / 1e9)
    assert "ratio" not in lines["stock"]
    assert benchmark.rounds == measure.ROUNDS[0]
    assert benchmark.extra_info["contenders"]


def test_every_contender_has_its_turn_in_every_round():
    calls = []
    contenders = [sleeping(name, 0.0, calls) for name in ("a", "b", "ours")]
    measure.run(Benchmark(), case(*contenders), seconds=0.0)
    checked_and_warmed_up = 2 * len(contenders)
    rounds = [calls[i : i + 3] for i in range(checked_and_warmed_up, len(calls), 3)]
    assert len(rounds) >= measure.ROUNDS[0]
    assert all(sorted(turn) == ["a", "b", "ours"] for turn in rounds)
    assert {turn[0] for turn in rounds} == {"a", "b"}


@pytest.mark.parametrize("wrong", [ONES * 1.01, ONES * float("nan"), torch.ones(5)])
def test_a_wrong_contender_is_not_timed(wrong):
    benchmark = Benchmark()
    liar = Contender("ours", lambda: wrong, expected=EXPECTED)
    with pytest.raises(AssertionError, match=r"ours: relative L2 error|the output is \(5,\), expected \(4,\)"):
        measure.run(benchmark, case(sleeping("stock", 0.0), liar), seconds=0.0)
    assert benchmark.rounds == 0


def test_nothing_expected_is_an_error():
    with pytest.raises(AssertionError, match="1 outputs, 0 are expected"):
        check(Contender("ours", lambda: ONES), ONES)


def test_allowed_error_is_twice_that_of_plain_pytorch():
    exact = torch.ones(100, dtype=torch.double)
    assert expect((exact + 1e-3).float(), exact).allowed == pytest.approx(2e-3, rel=1e-3)
    assert expect(exact, exact, floor=5e-7).allowed == 5e-7


def test_who_cannot_run_says_why():
    absent = Contender("ours", lambda: 1 / 0, absent="there is no such thing here")
    record = measure.run(Benchmark(), case(sleeping("stock", 0.0), absent), seconds=0.0)
    assert lines_of(record)["ours"] == {"name": "ours", "absent": "there is no such thing here"}
    assert "  ours: there is no such thing here" in table.terminal([record])


def test_extra_memory_is_beyond_the_result():
    def call():
        return torch.ones(4_000_000) + torch.ones(4_000_000)

    expected = (Expected(torch.full((4_000_000,), 2.0).double(), 1e-6),)
    contender = Contender("ours", call, expected=expected, memory=True)
    line = lines_of(measure.run(Benchmark(), case(contender), seconds=0.0))["ours"]
    if "extra_memory" not in line:
        pytest.skip("the kernel does not tell peak memory here")
    assert 30e6 < line["extra_memory"] < 40e6


# ---- the op's cases --------------------------------------------------------------------------------------------------


def contenders_of_the_op():
    return bench_fourier_mixing.side_by_side(
        "fourier_mixing",
        bench_fourier_mixing.fourier_mixing,
        bench_fourier_mixing.plain_mixing,
        bench_fourier_mixing.forward,
        (torch.randn(1, 6, 10),),
        "float32",
    )


def test_a_registered_backend_becomes_a_contender_and_is_checked():
    mine = Backend("mine", lambda key: None, reference.fourier_mixing)
    wrong = Backend("wrong", lambda key: None, lambda x, norm: 1.001 * reference.fourier_mixing(x, norm))
    for backend in (mine, wrong):
        remove = register_backend("fourier_mixing", backend)
        try:
            (contender,) = [one for one in contenders_of_the_op() if one.name == f"{backend.name} float32"]
            result = contender.call()
        finally:
            remove()
        if backend is mine:
            check(contender, result)
        else:
            with pytest.raises(AssertionError, match="wrong float32: relative L2 error"):
                check(contender, result)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_contenders_agree(dtype):
    torch.manual_seed(0)
    tensors = (torch.randn(4, 31, 48), torch.randn(48), torch.randn(48))  # enough numbers that none is right by luck
    contenders = bench_fourier_mixing.side_by_side(
        "fourier_mixing_layer_norm",
        bench_fourier_mixing.ours_layer_norm,
        bench_fourier_mixing.plain_layer_norm,
        bench_fourier_mixing.forward_and_backward,
        tensors,
        dtype,
    )
    for contender in contenders:
        if contender.absent is None:
            assert len(contender.expected) == 3
            check(contender, contender.call())


# ---- result files and README -----------------------------------------------------------------------------------------


def record(group="op forward", name="(1, 2, 3)", median=2e-3):
    ours = {"name": "ours", "median": median, "spread": 0.01, "baseline": "stock", "ratio": 4e-3 / median}
    ours["targets"] = [{"against": "stock", "at_least": 3.0, "reached": 4e-3 / median, "met": 4e-3 / median >= 3.0}]
    contenders = [{"name": "stock", "median": 4e-3, "spread": 0.02}, ours, {"name": "other", "absent": "not here"}]
    return {"group": group, "case": name, "rounds": 5, "others_load": 0.0, "contenders": contenders}


def test_a_partial_run_keeps_the_other_cases(tmp_path, monkeypatch):
    dates = iter(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"])
    conditions = results.conditions()
    monkeypatch.setattr(results, "conditions", lambda: conditions | {"date": next(dates)})
    results.save([record(), record(name="(4, 5, 6)")], tmp_path, "Some CPU, 2 threads")
    path = results.save([record(median=1e-3)], tmp_path, "Some CPU, 2 threads")
    assert path.name == "some-cpu-2-threads.json"
    content = results.load(path)
    assert content["cases"]["op forward (1, 2, 3)"]["contenders"][1]["median"] == 1e-3
    assert content["cases"]["op forward (1, 2, 3)"]["run"].startswith("2026-01-02")
    assert content["cases"]["op forward (4, 5, 6)"]["run"].startswith("2026-01-01")
    assert len(content["runs"]) == 2
    # Conditions that no case refers to any more go.
    results.save([record(), record(name="(4, 5, 6)")], tmp_path, "Some CPU, 2 threads")
    assert list(results.load(path)["runs"]) == ["2026-01-03T00:00:00Z"]


def test_conditions_name_what_was_measured():
    conditions = results.conditions()
    assert conditions["versions"]["torch"] == torch.__version__
    assert conditions["threads"] == torch.get_num_threads()
    assert {"commit", "dirty", "instruction_set", "date"} <= conditions.keys()
    json.dumps(conditions)


def test_slug():
    assert results.slug("Intel(R) Xeon(R) CPU @ 2.50GHz, 2 threads") == "intel-xeon-cpu-2.50ghz-2-threads"


TEMPLATE = """before
<!-- results: op forward | stock, ours -->
<!-- end of results -->
between
<!-- results: op backward -->
old
<!-- end of results -->
after
"""


def test_readme_shows_what_the_files_hold(tmp_path):
    (tmp_path / "README.md").write_text(TEMPLATE)
    folder = tmp_path / "results"
    results.save([record(), record(name="(4, 5, 6)", median=1e-3)], folder, "Some CPU, 2 threads")
    assert readme.main(["--check"], tmp_path, folder) == 1
    assert (tmp_path / "README.md").read_text() == TEMPLATE
    assert readme.main([], tmp_path, folder) == 0
    shown = (tmp_path / "README.md").read_text()
    assert "Some CPU, 2 threads." in shown
    assert "|  | stock | ours |" in shown
    assert "| (1, 2, 3) | 4.00 ms | 2.00 ms, **2.00x**, target 3x: missed |" in shown
    assert "| (4, 5, 6) | 4.00 ms | 1.00 ms, **4.00x**, target 3x: met |" in shown
    assert "Times as fast as stock: ours." in shown
    assert "other" not in shown
    assert "busy" not in shown
    assert "Not measured yet" in shown
    assert "old" not in shown
    assert shown.startswith("before\n")
    assert shown.endswith("after\n")
    assert "Measured on 20" in shown
    # Nothing to do the second time, and stale again once a number changes.
    assert readme.main(["--check"], tmp_path, folder) == 0
    results.save([record(median=1.5e-3) | {"others_load": 0.4}], folder, "Some CPU, 2 threads")
    assert readme.main(["--check"], tmp_path, folder) == 1
    readme.main([], tmp_path, folder)
    assert "on a busy machine (others used up to 40% of it)" in (tmp_path / "README.md").read_text()


def test_the_committed_readme_is_up_to_date():
    assert readme.main(["--check"]) == 0


def test_a_target_against_another_than_the_baseline_is_not_rounded_up():
    wanted = {"against": "ours float32", "at_least": 1.0, "reached": 0.998, "met": False}
    assert targets.speed({"baseline": "stock", "targets": [wanted]}) == "target 1x ours float32: missed at 0.99x"


@pytest.mark.parametrize(
    ("seconds", "words"), [(12.3456, "12.35 s"), (0.1234, "123 ms"), (0.01234, "12.3 ms"), (1.234e-5, "12.3 us")]
)
def test_times(seconds, words):
    assert text.time(seconds) == words


def test_kernels_for_gpus_say_which_gpu_has_run_them():
    lines = [{"name": "triton float32", "median": 1e-5}, {"name": "cpu float32", "absent": "runs on the CPU"}]
    case = {"group": "residual_layer_norm forward", "contenders": lines}
    absent = {
        "group": "residual_layer_norm forward and backward",
        "contenders": [{"name": "triton float32", "absent": "x"}],
    }
    files = [
        {"device": "H200", "runs": {"now": {"device_type": "cuda"}}, "cases": {"one": case, "two": absent}},
        {"device": "EPYC", "runs": {"now": {"device_type": "cpu"}}, "cases": {"one": case, "two": case}},
    ]
    wanted = "| `residual_layer_norm` | `triton` | {} | no GPU has run it yet |"
    assert wanted.format("H200") in gpu_kernels.table(files)
    assert wanted.format("no GPU has run it yet") in gpu_kernels.table(files[1:])
    assert not any("`cpu`" in line for line in gpu_kernels.table(files))


# ---- pytest bench/ ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_run_with_a_variant_is_saved(tmp_path):
    """The command of README's section on kernels of one's own, on one case."""
    variant = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[-1]
    (tmp_path / "variant.py").write_text(variant)
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "variant", "bench/ops", "--seconds", "0", "--save"]
    run = subprocess.run(
        [sys.executable, *command, "-k", "mixing_forward and 1021", "--results", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for words in ("fourier_mixing forward  (2, 1021, 509)", "mirrored float32", "mirrored bfloat16", "1 case saved"):
        assert words in run.stdout
    (path,) = tmp_path.glob("*.json")
    assert list(results.load(path)["cases"]) == ["fourier_mixing forward (2, 1021, 509)"]


def test_benches_and_tests_are_collected_apart(request):
    """Benches only where their folder is named: this very run has none of them."""
    assert not any(item.path.name.startswith("bench_") for item in request.session.items)
