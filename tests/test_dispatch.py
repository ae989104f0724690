from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import encoders_fast
from encoders_fast import Backend, _dispatch, explain, register_backend, use_backend
from encoders_fast.ops import fourier_mixing, fourier_mixing_layer_norm
from encoders_fast.ops.fourier_mixing import reference

x = torch.randn(1, 4, 6)


def test_every_public_name_is_what_it_says_twice():
    """A folder and a function share a name: importing the one must not hide the other."""
    for _ in range(2):
        from encoders_fast.ops import fourier_mixing as function
        from encoders_fast.ops.fourier_mixing import reference as file

        assert callable(function)
        assert file.fourier_mixing is not function
        assert encoders_fast.ops.fourier_mixing is function
        for name in ("Backend", "explain", "fourier_mixing_layer_norm", "register_backend", "use_backend"):
            assert getattr(encoders_fast, name).__name__ == name
            assert name in encoders_fast.__all__


def test_registered_backend_runs_first_and_leaves_again():
    def doubled(x: torch.Tensor, norm: str) -> torch.Tensor:
        return 2 * reference.fourier_mixing(x, norm)

    remove = register_backend("fourier_mixing", Backend("doubled", lambda key: None, doubled))
    try:
        assert torch.equal(fourier_mixing(x), 2 * reference.fourier_mixing(x, "backward"))
        assert explain(fourier_mixing, x).chosen == "doubled"
        assert "doubled" in [row.name for row in _dispatch.tables()["fourier_mixing"]]
        with use_backend("reference"):
            assert torch.equal(fourier_mixing(x), reference.fourier_mixing(x, "backward"))
        with pytest.raises(ValueError, match="already has a backend 'doubled'"):
            register_backend("fourier_mixing", Backend("doubled", lambda key: None, doubled))
    finally:
        remove()
    remove()  # once more does nothing
    assert explain(fourier_mixing, x).chosen != "doubled"
    assert not torch.equal(fourier_mixing(x), 2 * reference.fourier_mixing(x, "backward"))


def test_backends_that_cannot_be_registered():
    forward = reference.fourier_mixing_layer_norm
    with pytest.raises(ValueError, match="fourier_mixing_layer_norm's backends have a backward; 'half' has none"):
        register_backend("fourier_mixing_layer_norm", Backend("half", lambda key: None, forward))
    with pytest.raises(TypeError, match="this is 'cpu'"):
        register_backend("fourier_mixing", "cpu")
    with pytest.raises(ValueError, match="there is no op 'softmax'"):
        register_backend("softmax", Backend("half", lambda key: None, forward))


def test_overlapping_use_on_two_threads_leaves_nothing_behind():
    before = _dispatch.forced()
    first, second = use_backend("reference"), use_backend("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _dispatch.forced() == "cpu"
    second.__exit__(None, None, None)
    assert _dispatch.forced() == before


def test_behind_all_others_it_runs_where_they_refuse():
    rows = _dispatch.tables()["fourier_mixing"]
    remove = register_backend("fourier_mixing", Backend("last", lambda key: None, rows[-1].forward), first=False)
    try:
        assert explain(fourier_mixing, x).chosen != "last"
        with use_backend("last"):
            assert explain(fourier_mixing, x).chosen == "last"
    finally:
        remove()


def test_why_not_sees_static_facts_and_is_asked_once_per_key():
    keys = []

    def why_not(key: _dispatch.Key) -> str | None:
        keys.append(key)
        return "only widths of 6" if key.widths != (6,) else None

    remove = register_backend("fourier_mixing", Backend("picky", why_not, reference.fourier_mixing))
    try:
        with _dispatch.record() as calls:
            for T in (4, 5, 6):
                fourier_mixing(torch.randn(1, T, 6))
            fourier_mixing(torch.randn(1, 4, 7))
        assert [name for _, name in calls][:3] == ["picky"] * 3
        assert calls[3][1] != "picky"
        assert keys == [
            _dispatch.Key("cpu", None, (torch.float32,), (6,)),
            _dispatch.Key("cpu", None, (torch.float32,), (7,)),
        ]
        assert explain("fourier_mixing", torch.randn(1, 4, 7)).refusals["picky"] == "only widths of 6"
    finally:
        remove()


def test_forced_backend_that_cannot_run_says_why():
    with use_backend("cpu"), pytest.raises(NotImplementedError, match="cpu: computes in float32; the input is float64"):
        fourier_mixing(x.double())
    with (
        pytest.raises(ValueError, match="no op has a backend 'gpu'; there are brgemm, cpu, mkldnn, reference"),
        use_backend("gpu"),
    ):
        pass
    with use_backend("reference"), use_backend(None):
        assert _dispatch.forced() is None
    assert _dispatch.forced() == (os.environ.get("ENCODERS_FAST_BACKEND") or None)


def test_cuda_rows_are_judged_without_a_gpu():
    """Refusals depend on the key alone."""
    key = _dispatch.Key("cuda", (9, 0), (torch.bfloat16,) * 3, (768,) * 5)  # as many as any op has
    for rows in _dispatch.tables().values():
        refusals = {row.name: row.why_not(key) for row in rows}
        assert refusals["reference"] is None
        if "cpu" in refusals:  # an op may have no kernel of its own yet
            assert refusals["cpu"] == "runs on the CPU; the input is on cuda"


def test_explain_prints_every_refusal():
    text = str(explain(fourier_mixing_layer_norm, x.double(), torch.ones(6), torch.zeros(6)))
    assert text.splitlines()[0] == "fourier_mixing_layer_norm: reference"
    assert "cpu: computes in float32" in text
    for unknown in ("softmax", None, torch.relu):
        with pytest.raises(ValueError, match=r"there is no op .*; there are .*fourier_mixing, "):
            explain(unknown, x)
    with pytest.raises(TypeError, match=r"explain\(model\) takes no other arguments"):
        explain(torch.nn.Identity(), x)


@pytest.mark.parametrize(
    ("name", "says"), [("reference", "[('fourier_mixing', 'reference')]"), ("tpu", "no backend 'tpu'")]
)
def test_environment_variable(name, says):
    program = """
import torch
from encoders_fast import _dispatch
from encoders_fast.ops import fourier_mixing
with _dispatch.record() as calls:
    try:
        fourier_mixing(torch.ones(1, 2, 3))
        print(calls)
    except NotImplementedError as error:
        print(error)
"""
    env = {**os.environ, "ENCODERS_FAST_BACKEND": name}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert says in result.stdout
