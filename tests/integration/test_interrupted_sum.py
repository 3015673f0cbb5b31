"""A run stopped while a round is being summed saves no state that mixes two rounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedvsr.config import load_config
from fedvsr.federation.executors import Clients, Fault, SerialExecutor, TrainedClient
from fedvsr.messages import ClientUpdate
from fedvsr.runs.execution import execute
from fedvsr.runs.run import create_run, run_status
from tests.integration.equality import assert_equal_runs
from tests.integration.running import run_serially, split_of


class Stopping(SerialExecutor):
    """Ctrl-C comes when the last update of round 3 is summed: the others are in."""

    def run_round(self, *arguments: Any) -> Iterator[TrainedClient | Fault]:
        for client in super().run_round(*arguments):
            assert isinstance(client, TrainedClient)
            report = client.outcome.report
            if report.round_idx == 3 and report.client_id == arguments[0][-1].client_id:
                yield replace(client, update=Interrupting({}, client.update.state))
            else:
                yield client


class Interrupting(ClientUpdate):
    def __getattribute__(self, name: str) -> Any:
        if name == "upload":
            raise KeyboardInterrupt
        return super().__getattribute__(name)


def _stopping(clients: Clients) -> SerialExecutor:
    return Stopping(clients)


def test_saved_client_states_belong_to_the_saved_round(small_yaml: Path, tmp_path: Path) -> None:
    settings = ["algorithm.name=scaffold", "checkpoint.every_rounds=100"]
    # Every client trains in every round, so that its state is used again.
    settings += ["federation.clients_per_round=4", "federation.num_rounds=4"]
    config = load_config(str(small_yaml), settings)
    undisturbed = run_serially(config, tmp_path / "whole")
    run = create_run(config, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        list(execute(run, split_of(config), _stopping))
    assert run_status(run.folder) == "interrupted"
    list(execute(run, split_of(config), SerialExecutor))
    assert_equal_runs(undisturbed, run.folder)
