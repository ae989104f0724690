"""Names appear without transformers being loaded, or even installed."""

import subprocess
import sys

import pytest

import encoders_fast.models as ours


def _python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_importing_the_package_loads_no_transformers():
    result = _python(
        "import sys, encoders_fast.models as m; assert 'FNetModel' in dir(m); assert 'transformers' not in sys.modules"
    )
    assert result.returncode == 0, result.stderr


def test_without_transformers():
    code = "import sys; sys.modules['transformers'] = None\nimport encoders_fast.models as m\nm.FNetModel"
    result = _python(code)
    assert result.returncode == 1
    assert "ImportError: FNetModel needs transformers, which is not installed: pip install" in result.stderr


def test_every_public_name():
    for name in ours.__all__:
        assert getattr(ours, name) is getattr(ours, name)
    names = {n for table in (ours.FAMILIES, ours.TOKENIZERS) for family in table.values() for n in family}
    assert set(ours.__all__) == {"FAMILIES", "register_auto_classes", "accelerate", "restore", "verify"} | names
    with pytest.raises(AttributeError, match="no attribute 'FNetForEverything'"):
        _ = ours.FNetForEverything
