"""What reading a network's settings, and building it, imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fedvsr.lookup import names
from fedvsr.models._triton import constant_in_graphs


def modules_after(program: str) -> set[str]:
    """The modules that a fresh interpreter holds after a program."""
    command = [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_settings_and_size_rules_need_no_torch() -> None:
    program = "from fedvsr import models\nfrom fedvsr.models import " + ", ".join(
        names("fedvsr.models")
    )
    program += "\n[list(models.packaged(name)) for name in models.names(models.__name__)]"
    program += "\nvrt.spec(vrt.Config()), vrt.Config(size='demo').recipe()"
    assert not modules_after(program) & {"torch", "torchvision", "ray", "pandas", "numpy"}


@pytest.mark.parametrize("name", ["tiny", "rvrt"])
def test_building_a_network_imports_neither_the_compiler_nor_torchvision(name: str) -> None:
    modules = modules_after(f"from fedvsr import models; models.build({name!r}, size='demo')")
    assert "torch" in modules
    assert not modules & {"torch._dynamo", "sympy", "torchvision", "triton", "ray", "pandas"}


def test_constants_are_marked_as_torch_marks_them() -> None:
    def ours() -> None: ...
    def torchs() -> None: ...

    assert vars(constant_in_graphs(ours)) == vars(torch.compiler.assume_constant_result(torchs))
