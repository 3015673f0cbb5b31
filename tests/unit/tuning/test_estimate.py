from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedvsr.config import load_config
from fedvsr.errors import UserError
from fedvsr.records import load_results
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.estimate import cost, fits, fits_here
from fedvsr.tuning.sweep import expand
from tests.integration.running import run_serially


def sweep_of(small_yaml: Path, **settings: object) -> SweepConfig:
    space = {"algorithm.alpha": {"grid": [1, 2, 3]}}
    return SweepConfig.model_validate(
        {"name": "s", "base": str(small_yaml), "space": space, **settings}
    )


def test_a_given_estimate_follows_the_trials_settings(small_yaml: Path, tmp_path: Path) -> None:
    estimate = {"gpu_seconds_per_round": "100 * algorithm.alpha", "source": "measured"}
    sweep = sweep_of(small_yaml, estimate=estimate)
    estimated = cost(sweep, expand(sweep), tmp_path)
    assert estimated
    assert estimated.slot_s == [300, 600, 900], "3 rounds each"
    assert estimated.slot_hours == 0.5
    # Two at once: 300 and 600 begin; 900 follows the 300.
    assert estimated.wall_hours(expand(sweep), 2) == 1200 / 3600
    wrong = {"gpu_seconds_per_round": "2 * local.epoch", "source": "measured"}
    sweep = sweep_of(small_yaml, estimate=wrong)
    with pytest.raises(UserError, match=r"estimate.gpu_seconds_per_round: .*'local\.epochs'"):
        cost(sweep, expand(sweep), tmp_path)


def test_slots_of_a_trial_divide_its_time(small_yaml: Path, tmp_path: Path) -> None:
    estimate = {"gpu_seconds_per_round": 100, "source": "measured"}
    sweep = sweep_of(small_yaml, estimate=estimate, set={"cluster.slots": 2})
    estimated = cost(sweep, expand(sweep), tmp_path)
    assert estimated
    assert estimated.slot_hours == 900 / 3600
    assert estimated.wall_hours(expand(sweep), 1) == 450 / 3600


def test_without_an_estimate_runs_of_the_same_work_give_the_cost(
    small_yaml: Path, tmp_path: Path
) -> None:
    sweep = sweep_of(small_yaml)
    trials = expand(sweep)
    assert cost(sweep, trials, tmp_path / "nowhere") is None
    run_serially(load_config(str(small_yaml)), tmp_path)
    estimated = cost(sweep, trials, tmp_path)
    assert estimated
    clients = load_results(tmp_path).clients
    per_round = clients.groupby("round_idx")["train_s"].sum().median()
    assert estimated.slot_s == pytest.approx([3 * per_round] * 3)
    other = yaml.safe_load(small_yaml.read_text())
    other["local"]["steps"] = 4
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    sweep = sweep_of(tmp_path / "other.yaml")
    assert cost(sweep, expand(sweep), tmp_path) is None


def test_trials_at_once_on_a_cluster() -> None:
    bundles = [{"CPU": 1.0}, {"GPU": 1.0, "CPU": 2.0}, {"GPU": 1.0, "CPU": 2.0}]
    assert fits(bundles, {"CPU": 64, "GPU": 4, "memory": 1e9}) == 2
    assert fits(bundles, {"CPU": 9, "GPU": 4}) == 1
    assert fits(bundles, {"CPU": 64}) == 0


@pytest.mark.parametrize(
    ("slots", "clients_per_gpu", "trials"), [(1, 1, 4), (2, 2, 4), (3, 2, 2), (2, "auto", 2)]
)
def test_trials_on_one_machine_take_whole_gpus(
    slots: int, clients_per_gpu: object, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    changes = [f"cluster.slots={slots}", f"cluster.clients_per_gpu={clients_per_gpu}"]
    assert fits_here(load_config("demo", changes)) == trials
