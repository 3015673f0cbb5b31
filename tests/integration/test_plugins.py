"""Methods and networks of one's own on Ray: a file travels, a module must be installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr.config import load_config
from fedvsr.errors import UserError
from fedvsr.runs.run import create_run
from tests.integration.equality import assert_equal_runs
from tests.integration.running import on_ray, run_serially
from tests.unit.test_plugins import NETWORK, write

pytestmark = [pytest.mark.ray, pytest.mark.full, pytest.mark.usefixtures("local_ray")]
SHORT = ["federation.num_rounds=1", "local.steps=1"]


def test_files_reach_the_clients_and_change_no_bit(small_yaml: Path, tmp_path: Path) -> None:
    method, network = write(tmp_path, "mean"), write(tmp_path, "plain", text=NETWORK)
    settings = [f"algorithm.name={method}", f"model={{name: {network}, size: demo}}", *SHORT]
    config = load_config(str(small_yaml), settings)
    method.unlink()
    network.unlink()
    run = create_run(config, tmp_path / "ray")
    list(on_ray(run))
    assert_equal_runs(run_serially(config, tmp_path / "serial"), run.folder)


def test_a_module_that_nodes_lack_is_named_in_one_line(
    small_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "only_here", "mean")
    config = load_config(str(small_yaml), ["algorithm.name=only_here.mean", *SHORT])
    with pytest.raises(UserError, match=r"Python finds no module only_here on .*; install it"):
        list(on_ray(create_run(config, tmp_path / "out")))
