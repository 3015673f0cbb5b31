from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedvsr.config import load_config
from fedvsr.errors import UserError
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.sweep import expand, load_sweep, save_sweep

LAMBDAS: dict[str, Any] = {
    "name": "t",
    "base": "demo",
    "space": {
        "algorithm.lambda_vsr": {"linspace": [0.1, 1.0, 10]},
        "algorithm.lambda_hifr": {"grid": [0.5, 1.0]},
    },
}


def load(folder: Path, settings: dict[str, Any], *overrides: str) -> SweepConfig:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return load_sweep(path, overrides)


def test_1e_3_is_read_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: s\nbase: demo\nspace: {local.lr: {grid: [1e-3, 2E-3]}}\n")
    assert load_sweep(path).space["local.lr"].grid == [1e-3, 2e-3]


def test_a_grid_has_every_combination_in_order(tmp_path: Path) -> None:
    trials = expand(load(tmp_path, LAMBDAS, "federation.num_rounds=3"))
    assert [t.index for t in trials] == list(range(20))
    assert trials[5].values == {"algorithm.lambda_vsr": 0.3, "algorithm.lambda_hifr": 1.0}
    assert trials[5].config.algorithm.lambda_vsr == 0.3, "not 0.30000000000000004"
    assert {t.config.federation.num_rounds for t in trials} == {3}
    assert {t.config.name for t in trials} == {"t"}
    assert len({t.config.config_hash() for t in trials}) == 20


def test_a_constraint_follows_what_is_swept(tmp_path: Path) -> None:
    space = {"algorithm.lambda_vsr": {"linspace": [0.1, 1.0, 10]}}
    bounded = LAMBDAS | {
        "space": space,
        "constraints": {"algorithm.lambda_hifr": "1 - algorithm.lambda_vsr"},
    }
    found = [
        (t.config.algorithm.lambda_vsr, t.config.algorithm.lambda_hifr)
        for t in expand(load(tmp_path, bounded))
    ]
    assert found == [(i / 10, (10 - i) / 10) for i in range(1, 11)]


def test_cases_change_several_settings_and_the_last_one_wins(tmp_path: Path) -> None:
    space = {
        "model": {"cases": {"a": {"local.lr": 1e-5, "algorithm.lambda_hifr": 0.5}, "b": {}}},
        "method": {
            "cases": {
                "loss": {"algorithm.name": "f_hifr"},
                "weights": {"algorithm": {"name": "f_ala", "lambda_hifr": 0}},
            }
        },
    }
    trials = expand(load(tmp_path, LAMBDAS | {"space": space}))
    settings = [(t.config.algorithm.name, t.config.algorithm.lambda_hifr) for t in trials]
    assert settings == [("f_hifr", 0.5), ("f_ala", 0), ("f_hifr", 1), ("f_ala", 0)]
    assert trials[0].config.local.lr == 1e-5
    assert trials[2].config.local.lr == 2e-3, "the recipe's"
    assert trials[1].label == "model=a method=weights"


def test_the_base_itself_can_be_swept(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: demo\nalgorithm: {name: krum}\n")
    sweep = LAMBDAS | {"base": "mine.yaml", "space": {"base": {"grid": ["demo", "demo_fedavg"]}}}
    names = [t.config.algorithm.name for t in expand(load(tmp_path, sweep))]
    assert names == ["fedvsr", "fedavg"]
    # A file is searched beside the sweep's, wherever the command runs.
    (tmp_path / "other.yaml").write_text("extends: demo\nalgorithm: {name: fedprox}\n")
    sweep["space"] = {"base": {"grid": ["demo", "other.yaml"]}}
    names = [t.config.algorithm.name for t in expand(load(tmp_path, sweep))]
    assert names == ["fedvsr", "fedprox"]
    sweep["space"] = {"algorithm.num_byzantine": {"grid": [0]}}
    assert [t.config.algorithm.name for t in expand(load(tmp_path, sweep))] == ["krum"]


def test_random_draws_are_the_same_each_time_and_differ_among_themselves(tmp_path: Path) -> None:
    sweep = LAMBDAS | {
        "space": {
            "local.lr": {"loguniform": [1e-4, 1e-1]},
            "algorithm.alpha": {"uniform": [0.5, 2]},
            "algorithm.decay": {"choice": ["linear", "none"]},
        },
        "searcher": {"name": "random", "num_samples": 30},
    }
    first, again = (expand(load(tmp_path, sweep)) for _ in range(2))
    assert first == again
    rates = [t.config.local.lr for t in first]
    assert len(set(rates)) == 30
    assert 1e-4 <= min(rates) < 1e-3 < 1e-2 < max(rates) <= 1e-1, "even in the logarithm"
    assert all(0.5 <= t.config.algorithm.alpha <= 2 for t in first)
    assert {t.config.algorithm.decay for t in first} == {"linear", "none"}
    other = load(tmp_path, sweep | {"searcher": {"name": "random", "num_samples": 30, "seed": 1}})
    assert expand(other)[0].values != first[0].values


def test_what_has_no_effect_in_a_trial_is_left_out_of_it(tmp_path: Path) -> None:
    space = {
        "algorithm.name": {"grid": ["fedavg", "fedvsr"]},
        "algorithm.alpha": {"grid": [0.5, 1, 2]},
    }
    sweep = LAMBDAS | {"space": space, "set": {"algorithm.decay": "none"}}
    trials = expand(load(tmp_path, sweep))
    # FedAvg is one experiment, whatever alpha is.
    assert [(t.config.algorithm.name, t.config.algorithm.alpha) for t in trials] == [
        ("fedavg", 1),
        ("fedvsr", 0.5),
        ("fedvsr", 1),
        ("fedvsr", 2),
    ]
    assert [t.index for t in trials] == [0, 1, 2, 3]
    assert [t.config.algorithm.decay for t in trials] == ["linear", "none", "none", "none"]
    assert trials[0].config.config_hash() == load_config("demo_fedavg").config_hash()
    assert trials[0].values == {"algorithm.name": "fedavg", "algorithm.alpha": 0.5}
    assert trials[0].unused == ("algorithm.alpha",)
    # Trials that are equal for another reason are a mistake.
    sweep["space"] = {"rate": {"cases": {"a": {"local.lr": 0.5}, "b": {"local.lr": 0.5}}}}
    with pytest.raises(UserError, match="have the same settings; take one out"):
        expand(load(tmp_path, sweep))


def test_what_has_no_effect_in_any_trial_is_refused(tmp_path: Path) -> None:
    sweep = LAMBDAS | {"base": "demo_fedavg"}
    lr = {"local.lr": {"grid": [0.001, 0.002]}}
    for changes, key in (
        ({"space": {"algorithm.alpha": {"grid": [0.5, 1, 2]}}}, "algorithm.alpha"),
        ({"space": lr, "set": {"local": {"momentum": 0.9}}}, "local.momentum"),
    ):
        with pytest.raises(UserError, match=f"^{key} has no effect in any trial; leave it out$"):
            expand(load(tmp_path, sweep | changes))


def test_seeds_repeat_every_trial(tmp_path: Path) -> None:
    trials = expand(load(tmp_path, LAMBDAS | {"seeds": [4, 5]}))
    assert len(trials) == 40
    assert [t.config.seed for t in trials[:3]] == [4, 5, 4]
    assert trials[1].values["seed"] == 5


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("psnr_db", "max"), ("test/held-out/lpips", "min"), ("tof_px", "min"), ("vmaf", "max"),
     ("loss", "min")],
)  # fmt: skip
def test_a_metrics_own_direction_is_followed(tmp_path: Path, metric: str, mode: str) -> None:
    changes = {"metric": metric, "set": {"evaluation.metrics": ["lpips", "tof", "vmaf"]}}
    assert load(tmp_path, LAMBDAS | changes).mode == mode
    assert load(tmp_path, LAMBDAS | changes | {"mode": "max"}).mode == "max", "unless it is given"
    assert expand(load(tmp_path, LAMBDAS | changes))


def test_a_saved_sweep_reads_the_same(tmp_path: Path) -> None:
    sweep = load(tmp_path, LAMBDAS, "data.num_clients=6")
    save_sweep(sweep, tmp_path / "again.yaml")
    assert load_sweep(tmp_path / "again.yaml") == sweep


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sapce": {}}, "sapce is not a setting; did you mean 'space'"),
        ({"name": None}, "name = None"),
        ({"estimate": {"source": "x"}}, "gpu_seconds_per_round is missing: give it in the file"),
        ({"space": {"local.lr": {"gird": [1]}}}, "space.local.lr.gird is not a setting; did you m"),
        ({"space": {"local.lr": {"grid": [1], "choice": [1]}}}, "not 2"),
        ({"space": {"local.lr": {"linspace": [0, 1, 1]}}}, "at least 2 values"),
        ({"space": {"local.lr": {"uniform": [1, 0]}}}, "the first bound must be the lower"),
        ({"space": {"local.lr": {"loguniform": [0, 1]}}}, "bounds above 0"),
        ({"space": {}}, "space = {}"),
        ({"metric": "psnr"}, "metric = 'psnr' is not reported; did you mean 'psnr_db'"),
        ({"metric": "test/Vid4/vmfa"}, "is not reported; did you mean 'vmaf'"),
        ({"scheduler": {"name": "ahsa"}}, "scheduler.name = 'ahsa'"),
        ({"constraints": {"local.lr": "2 * algorithm.lamda_vsr"}}, "lamda_vsr is not swept; did"),
        ({"constraints": {"algorithm.lambda_vsr": "1"}}, "is in space too"),
        ({"searcher": {"num_samples": 2}}, "every repetition would be the same"),
        ({"seeds": [1, 1]}, "give each seed once"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep\.yaml: ") as raised:
        load(tmp_path, LAMBDAS | changes)
    assert message in str(raised.value)
    assert "--set" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": {"algorithm.lamda_vsr": {"grid": [1]}}},
            r"trial 0 \(lamda_vsr=1\): algorithm.lamda_vsr is not a setting; did you mean",
        ),
        (
            {"space": {"federation.clients_per_round": {"grid": [4, 99]}}},
            r"trial 1 \(clients_per_round=99\): federation.clients_per_round = 99 is more than",
        ),
        ({"space": {"base": {"grid": ["dmeo"]}}}, r"trial 0 .*did you mean 'demo'"),
        ({"metric": "vmaf"}, "metric = vmaf, but evaluation.metrics has no vmaf; add it to `set`"),
        ({"space": {"cluster.slots": {"grid": [1, 2]}}}, r"trials 0 \(slots=1\) and 1 .* the same"),
        ({"constraints": {"local.lr": "1 / (algorithm.lambda_vsr - 0.1)"}}, "trial 0.*by zero"),
        (
            {
                "space": {"algorithm.decay": {"choice": ["linear", "none"]}},
                "searcher": {"num_samples": 3},
            },
            "has only 2 combinations",
        ),
    ],
)
def test_a_refused_trial_is_named_before_anything_starts(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        expand(load(tmp_path, LAMBDAS | changes))


def test_a_swept_setting_cannot_be_set_by_an_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set algorithm\.lambda_vsr: it is swept by"):
        load(tmp_path, LAMBDAS, "algorithm.lambda_vsr=1")
    with pytest.raises(UserError, match="not of the form"):
        load(tmp_path, LAMBDAS, "algorithm.lambda_vsr")
    with pytest.raises(UserError, match="cannot be read"):
        load_sweep(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"broken\.yaml is not valid YAML"):
        load_sweep(tmp_path / "broken.yaml")
