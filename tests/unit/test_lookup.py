from __future__ import annotations

import subprocess
import sys

import pytest

from fedvsr import lookup
from fedvsr.errors import UserError
from fedvsr.seeding import derive_seed, generator


def test_names_are_the_public_files() -> None:
    assert {"fedavg", "fedvsr"} <= set(lookup.names("fedvsr.algorithms"))
    assert not any(name.startswith("_") for name in lookup.names("fedvsr.algorithms"))


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"did you mean 'fedavg'.*there are: .*fedvsr"):
        lookup.load("fedvsr.algorithms", "fedavgg")


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    program = "import sys, fedvsr; print({'torch', 'ray', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


HEAVY = {"torch", "torchvision", "ray", "pandas", "av", "matplotlib", "pywt"}


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("from fedvsr.config import *; load_config('demo')", HEAVY),
        ("from fedvsr.settings import *; presets()", HEAVY),
        ("from fedvsr.algorithms import reference; reference()", HEAVY),
        ("from fedvsr.cli.settings import algorithms; algorithms(markdown=True)", HEAVY),
    ],
)
def test_reading_settings_imports_no_heavy_package(program: str, absent: set[str]) -> None:
    program = f"import sys; {program}; print(sorted({absent} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout[-500:] + done.stderr


def test_seeds_differ_by_scope_and_stay_the_same() -> None:
    # Frozen: a changed value means that every recorded number can no longer be reproduced.
    assert derive_seed(0, "client", 3, 7) == 2665888356271776053
    scopes = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "a", "1")]
    assert len({derive_seed(*scope) for scope in scopes}) == len(scopes)  # type: ignore[arg-type]
    assert generator(5, "x").random() == generator(5, "x").random()
