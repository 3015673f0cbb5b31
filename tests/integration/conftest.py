from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedvsr.config import load_config
from fedvsr.federation import connection
from tests.conftest import MakeOnce
from tests.integration.commands import LONG
from tests.integration.running import run_serially


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A real Ray on this machine, for all tests of a module."""
    connection.connect("local", 128 << 20)
    yield
    connection.disconnect()


@pytest.fixture(scope="session")
def undisturbed_long(small_yaml: Path, make_once: MakeOnce) -> Path:
    """The folder of a run, in which nothing failed, of what `commands.run_command` runs."""
    config = load_config(str(small_yaml), [f"{key}={value}" for key, value in LONG.items()])
    (run,) = make_once("long", lambda folder: run_serially(config, folder)).iterdir()
    return run
