"""Broken, wrong and malicious checkpoints get one clear sentence, and nothing in them is executed."""

import os
import pickle

import h5py
import msgpack
import numpy as np
import pytest

import encoders_fast.models as ours
from tests.models import other_frameworks_files as files
from tests.models.model_cases import config, pair

NAMES = {"TF": "MobileBertModel", "Flax": "RobertaPreLayerNormModel"}
FILES = files.FILES
BIAS = {"TF": "mobilebert/embeddings/LayerNorm/bias:0", "Flax": "embeddings/LayerNorm/bias"}


class Malicious:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture(params=NAMES)
def framework(request, tmp_path):
    config(NAMES[request.param]).save_pretrained(tmp_path)
    return request.param


def _weights(framework):
    return files.weights(framework, pair(NAMES[framework])[0])


def _load(framework, folder):
    return getattr(ours, NAMES[framework]).from_pretrained(folder)


def test_files_that_are_not_whole(framework, tmp_path):
    """Cut anywhere, or something else altogether; a pickle among them is not touched."""
    file, trap = tmp_path / FILES[framework], tmp_path / "sprung"
    files.write(framework, tmp_path, _weights(framework))
    whole = file.read_bytes()
    _load(framework, tmp_path)
    contents = [whole[:size] for size in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    if framework == "TF":  # the names of the weights, and how the values are stored
        contents += [whole.replace(old, b"\xff\xff\xff\xff") for old in (b"HEAP", b"SNOD", b"TREE")]
    contents += [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", pickle.dumps(Malicious(trap))]
    contents += [msgpack.packb([1, 2]), msgpack.packb(7), b"\xc1"]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(OSError, match=rf"{FILES[framework]} (is not a whole \w+ file|has a \w+ in it)"):
            _load(framework, tmp_path)
    assert not trap.exists()


def test_two_values_for_one_weight(framework, tmp_path):
    other = {"TF": "beta:0", "Flax": "beta"}[framework]
    twice = BIAS[framework].rpartition("/")[0] + "/" + other
    files.write(framework, tmp_path, _weights(framework) | {twice: np.ones(32, np.float32)})
    with pytest.raises(ValueError, match=r"LayerNorm\.bias has two values"):
        _load(framework, tmp_path)


# ---- HDF5 -----------------------------------------------------------------------------------------------------------


def _with_dataset(folder, make):
    """A checkpoint of TensorFlow's in which `make(file, name)` makes one weight."""
    config(NAMES["TF"]).save_pretrained(folder)
    files.write("TF", folder, _weights("TF"))
    with h5py.File(folder / FILES["TF"], "a") as file:
        name = f"mobilebert/tf_model_1/{BIAS['TF']}"
        del file[name]
        make(file, name)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool", "S8", h5py.string_dtype(), "longdouble"])
def test_what_is_not_a_number_in_h5(dtype, tmp_path):
    _with_dataset(tmp_path, lambda file, name: file.create_dataset(name, (32,), dtype=dtype))
    with pytest.raises(ValueError, match=r"LayerNorm/bias:0 is of type .*; weights are float16, float32 or float64"):
        _load("TF", tmp_path)


@pytest.mark.parametrize("shape", [(32,), (10**12,), (10**6, 10**6, 10**4)])
def test_values_that_are_not_in_h5(shape, tmp_path):
    """HDF5 would make them up, however many."""
    for options in ({}, {"chunks": True}, {"chunks": (1,) * len(shape), "compression": "gzip"}):
        _with_dataset(tmp_path, lambda file, name, o=options: file.create_dataset(name, shape, dtype="f4", **o))
        with pytest.raises(ValueError, match=r"LayerNorm/bias:0 has the shape .* and 0 bytes of values"):
            _load("TF", tmp_path)


def test_values_in_another_file(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(32, np.float32).tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["values"] = np.ones(32, np.float32)
    layout = h5py.VirtualLayout((32,), dtype="f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "values", (32,))
    for make in (
        lambda file, name: file.create_dataset(name, (32,), dtype="f4", external=[(str(secret), 0, 128)]),
        lambda file, name: file.create_virtual_dataset(name, layout),
    ):
        _with_dataset(tmp_path, make)
        with pytest.raises(ValueError, match=r"LayerNorm/bias:0 has its values in another file"):
            _load("TF", tmp_path)
    # A link is as if it were not there.
    _with_dataset(tmp_path, lambda file, name: file.__setitem__(name, h5py.ExternalLink("other.h5", "values")))
    with pytest.raises(ValueError, match=r"lacks the backbone's embeddings\.LayerNorm\.bias$"):
        _load("TF", tmp_path)


# ---- msgpack --------------------------------------------------------------------------------------------------------


def _packed(*payload, code=1):
    return msgpack.ExtType(code, msgpack.packb(payload))


GOOD = np.ones(32, np.float32)
BYTES = GOOD.tobytes()
NOT_WEIGHTS = {
    "an object": (_packed([32], "object", BYTES), "is of type 'object'; weights are bfloat16"),
    "integers": (files.packed(GOOD.astype(np.int32)), "is of type 'int32'"),
    "complex numbers": (files.packed(GOOD.astype(np.complex64)), "is of type 'complex64'"),
    "no dtype": (_packed([32], 7, BYTES), "is of type 7"),
    "an absurd shape": (_packed([10**15], "float32", BYTES), r"has the shape \[1000000000000000\], which is none"),
    "too large a shape": (_packed([10**9, 10**3], "float32", BYTES), "and 128 bytes of values"),
    "too small a shape": (_packed([31], "float32", BYTES), "and 128 bytes of values"),
    "the wrong type's size": (_packed([32], "float64", BYTES), "the type float64 and 128 bytes of values"),
    "an absurd shape of nothing": (_packed([0, 2**39, 2**39], "float32", b""), "which is none"),
    "no size": (_packed([-1], "float32", BYTES), r"has the shape \[-1\]"),
    "a shape of words": (_packed(["32"], "float32", BYTES), "which is none"),
    "no shape": (_packed(32, "float32", BYTES), "has the shape 32, which is none"),
    "no bytes": (_packed([32], "float32", "text"), "a str of values"),
    "too few parts": (_packed([32], "float32"), r"must be \[shape, dtype, bytes\]"),
    "nothing": (msgpack.ExtType(1, b""), r"must be \[shape, dtype, bytes\]"),
    "rubbish": (msgpack.ExtType(1, b"\xc1\xff"), r"must be \[shape, dtype, bytes\]"),
    "a native complex number": (_packed(1.0, 2.0, code=2), "is an extension of type 2, not an array"),
    "an unknown extension": (_packed([32], "float32", BYTES, code=42), "is an extension of type 42"),
    "a time": (msgpack.Timestamp(1), "is a Timestamp, not an array"),
    "a number": (1.5, "is a float, not an array"),
    "a text": ("values", "is a str, not an array"),
    "a list": ([1.0], "is a list, not an array"),
    "nothing at all": (None, "is a NoneType, not an array"),
    "chunks without a shape": ({**files.in_chunks(GOOD, 8), "shape": None}, "must have a shape and chunks"),
    "chunks with gaps": ({**files.in_chunks(GOOD, 8), "chunks": {"0": 1, "2": 1}}, "must have a shape and chunks"),
    "chunks of another shape": (
        {**files.in_chunks(GOOD, 8), "shape": {"0": 33}},
        r"has the shape \[33\], and chunks \(8",
    ),
    "an absurd shape of chunks": ({**files.in_chunks(GOOD, 8), "shape": {"0": -32}}, r"has the shape \[-32\]"),
    "chunks of two types": (
        {
            **files.in_chunks(GOOD, 16),
            "chunks": {"0": files.packed(GOOD[:16]), "1": files.packed(GOOD[16:].astype("f8"))},
        },
        r"has the shape \[32\], and chunks \(16,\) of torch.float32, \(16,\) of torch.float64",
    ),
    "no chunks": ({**files.in_chunks(GOOD, 8), "chunks": {}}, "chunks are missing"),
}


@pytest.mark.parametrize("case", NOT_WEIGHTS)
def test_what_is_not_a_weight_in_msgpack(case, tmp_path):
    value, sentence = NOT_WEIGHTS[case]
    config(NAMES["Flax"]).save_pretrained(tmp_path)
    files.write("Flax", tmp_path, _weights("Flax") | {BIAS["Flax"]: value})
    with pytest.raises(ValueError, match=rf"flax_model\.msgpack: {BIAS['Flax']}.* {sentence}"):
        _load("Flax", tmp_path)


def test_pickles_in_msgpack(tmp_path):
    trap = tmp_path / "sprung"
    payload = pickle.dumps(Malicious(trap))
    config(NAMES["Flax"]).save_pretrained(tmp_path)
    for code, dtype in ((1, "object"), (3, "O"), (1, "|O8"), (9, "object")):
        value = msgpack.ExtType(code, msgpack.packb(([1], dtype, payload)))
        files.write("Flax", tmp_path, {BIAS["Flax"]: value})
        with pytest.raises(ValueError, match=r"weights are bfloat16|extension of type 9"):
            _load("Flax", tmp_path)
    assert not trap.exists()


def test_depth_and_keys_of_msgpack(tmp_path):
    config(NAMES["Flax"]).save_pretrained(tmp_path)
    file = tmp_path / FILES["Flax"]
    for content in (b"\x81\xa1a" * 500 + b"\xc0", b"\x81\xa1a" * 10**5 + b"\xc0", msgpack.packb({1: None})):
        file.write_bytes(content)
        with pytest.raises((OSError, ValueError), match=r"flax_model\.msgpack(: a/a/a| is not a whole)"):
            _load("Flax", tmp_path)
