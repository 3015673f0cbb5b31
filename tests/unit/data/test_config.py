from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("statement", ["fedvsr.data.config", "fedvsr.data.shape", "fedvsr.mirror"])
def test_what_the_configuration_imports_is_light(statement: str) -> None:
    heavy = {"torch", "torchvision", "av", "PIL", "pandas", "pyarrow", "ray", "matplotlib"}
    program = f"import sys, {statement}; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout.decode().split() == []
