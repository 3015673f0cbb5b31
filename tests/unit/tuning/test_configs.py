"""Every file in tune_configs/ matches its opening comment."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest

from fedvsr.config import ExperimentConfig
from fedvsr.models.spec import RELEASED_FLOW
from fedvsr.report.gather import VARIANTS
from fedvsr.tuning.estimate import cost
from fedvsr.tuning.sweep import expand, load_sweep

FOLDER = Path(__file__).parents[3] / "tune_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
# Sweeps of the demo's videos; the others need data sets.
EXAMPLES = {"demo_basicvsrpp", "demo_networks", "personal", "personal_iart", "smoke"}
EXPECTED = {
    "alpha": 6,
    "clients": 12,
    "confounds": 8,
    "demo_basicvsrpp": 2,
    "demo_networks": 5,
    "failures": 16,
    "fedprox_mu": 12,
    "lambda_bounded_iart": 10,
    "lambda_bounded_rvrt": 10,
    "lambda_bounded_vrt": 10,
    "lambda_grid_iart": 100,
    "lambda_grid_rvrt": 100,
    "lambda_grid_vrt": 100,
    "lambda_ratio_iart": 63,
    "lambda_ratio_rvrt": 63,
    "lambda_ratio_vrt": 63,
    "local_epochs": 14,
    "overhead": 7,
    "personal": 24,
    "personal_iart": 21,
    "smoke": 4,
    "table1": 36,
    "table1_basicvsrpp": 12,
    "table2_ablation": 18,
}


def test_every_file_is_tested() -> None:
    assert [path.stem for path in FILES] == sorted(EXPECTED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_files_comment_gives_its_number_of_runs_and_hours(path: Path, tmp_path: Path) -> None:
    comment = path.read_text().partition("\nname:")[0]
    sweep = load_sweep(path)
    trials = expand(sweep)
    assert sweep.name == path.stem
    assert sweep.description
    assert f"# fedvsr tune tune_configs/{path.name}" in comment.splitlines()[0]
    assert "\n# Expected" in comment
    found = re.search(r"# ([\d,]+) runs of (\d+) rounds", comment)
    assert found
    assert int(found[1].replace(",", "")) == len(trials) == EXPECTED[path.stem]
    assert {t.config.federation.num_rounds for t in trials} == {int(found[2])}
    estimate = cost(sweep, trials, tmp_path)
    if path.stem in EXAMPLES:
        assert estimate is None
        return
    # By the preset that the sweep is based on, unless --set names another file.
    assert {t.config.model.flow_weights for t in trials} == {f"stores/{RELEASED_FLOW}"}
    moved = expand(load_sweep(path, ["model.flow_weights=/a.pth"]))
    assert {t.config.model.flow_weights for t in moved} == {"/a.pth"}
    assert f"stores/{RELEASED_FLOW}" in comment
    assert estimate
    hours = re.search(r"rounds, ([\d,]+) GPU hours: ([\d,]+) hours on 4 x A6000", comment)
    assert hours
    assert int(hours[1].replace(",", "")) == round(estimate.slot_hours)
    assert int(hours[2].replace(",", "")) == round(estimate.wall_hours(trials, 4))


def test_table1_has_the_runs_of_the_paper() -> None:
    trials = expand(load_sweep(FOLDER / "table1.yaml"))
    configs = [t.config for t in trials]
    assert {(c.model.name, c.algorithm.name, c.data.partition) for c in configs} == {
        (model, algorithm, partition)
        for model in ("vrt", "rvrt", "iart")
        for algorithm in ("fedavg", "fedprox", "scaffold", "fedmedian", *VARIANTS)
        for partition in ("less", "more")
    }
    for config in configs:
        assert (config.data.num_clients, config.data.clips_per_client) == (40, 6)
        assert (config.federation.num_rounds, config.federation.clients_per_round) == (100, 4)
        assert config.local.epochs == 1
        assert config.local.steps is None
        assert (config.data.train, config.data.held_out, config.data.test) == (
            (["stores/reds"], "reds4", ["stores/vid4"])
            if config.data.partition == "less"
            else (["stores/kinetics"], [], ["stores/reds4", "stores/vid4"])
        )
    lambdas = {
        variant: {
            c.model.name: (c.algorithm.lambda_vsr, c.algorithm.lambda_hifr)
            for c in configs
            if c.algorithm.name == variant
        }
        for variant in VARIANTS
    }
    assert lambdas["fedvsr"] == {"vrt": (1, 1), "rvrt": (1, 0.5), "iart": (0.5, 0.5)}
    assert lambdas["fedvsr_published"] == dict.fromkeys(("vrt", "rvrt", "iart"), (1, 1))
    assert {c.algorithm.lambda_hifr for c in configs if c.algorithm.name not in VARIANTS} == {0}


def test_table1_of_basicvsrpp_has_the_methods_and_data_of_table1() -> None:
    def cells(name: str, model: str) -> list[tuple[object, ...]]:
        configs = [t.config for t in expand(load_sweep(FOLDER / f"{name}.yaml"))]
        return [
            (c.algorithm.name, c.data.model_dump(), c.federation.num_rounds, c.evaluation.metrics)
            for c in configs
            if c.model.name == model
        ]

    assert cells("table1_basicvsrpp", "basicvsrpp") == cells("table1", "vrt")


def test_table2_has_one_part_of_fedvsr_at_a_time() -> None:
    for trial in expand(load_sweep(FOLDER / "table2_ablation.yaml")):
        algorithm, network = trial.config.algorithm, trial.config.model.name
        best = {"vrt": (1, 1), "rvrt": (1, 0.5), "iart": (0.5, 0.5)}[network]
        weights = algorithm.lambda_vsr, algorithm.lambda_hifr
        assert weights == (best if algorithm.name == "f_hifr" else (1, 0))
        expected = {"f_hifr": "samples", "f_ala": "loss_aware", "f_gla": "loss_aware"}
        assert algorithm.weights == expected[algorithm.name]


def test_the_same_clips_are_dealt_to_more_clients() -> None:
    configs = [t.config for t in expand(load_sweep(FOLDER / "clients.yaml"))]
    assert {
        (c.model.name, c.algorithm.name, c.data.partition, c.data.num_clients,
         c.data.clips_per_client)
        for c in configs
    } == {
        ("vrt", algorithm, partition, num_clients, 240 // num_clients)
        for algorithm in ("fedavg", "fedvsr_published")
        for partition in ("less", "more")
        for num_clients in (40, 120, 240)
    }  # fmt: skip


def test_local_epochs_are_compared_with_centralized_training() -> None:
    configs = [t.config for t in expand(load_sweep(FOLDER / "local_epochs.yaml"))]
    assert {(c.algorithm.name, c.data.partition, c.local.epochs) for c in configs} == {
        *product(("fedavg", "fedvsr_published"), ("less", "more"), (1, 2, 5)),
        *product(("centralized",), ("less", "more"), (1,)),
    }


def test_uploads_fail_at_the_published_rates() -> None:
    configs = [t.config for t in expand(load_sweep(FOLDER / "failures.yaml"))]
    assert {
        (c.algorithm.name, c.data.partition, c.federation.upload_failure_probability)
        for c in configs
    } == set(product(("fedavg", "fedvsr_published"), ("less", "more"), (0, 0.25, 0.5, 0.75)))


def test_the_published_scripts_differences_are_told_from_the_method() -> None:
    configs = [t.config for t in expand(load_sweep(FOLDER / "confounds.yaml"))]
    assert {c.algorithm.name for c in configs} == {"fedavg"}
    # 6 clips of 100 frames, a sample from each.
    steps = 100 * 600
    assert {(c.data.partition, c.local.batch_size, _frozen(c, steps)) for c in configs} == set(
        product(("less", "more"), (1, 4), ("never", "always"))
    )


def _frozen(config: ExperimentConfig, steps: int) -> str:
    frozen = config.local.freeze_steps
    return "always" if frozen >= steps else "for a while" if frozen else "never"


def test_the_ratios_of_the_lambdas_are_those_of_the_grid() -> None:
    assert len({Fraction(a, b) for a in range(1, 11) for b in range(1, 11)}) == 63
    for network in ("vrt", "rvrt", "iart"):
        ratios = {
            kind: sorted(
                {
                    round(t.config.algorithm.lambda_hifr / t.config.algorithm.lambda_vsr, 4)
                    for t in expand(load_sweep(FOLDER / f"lambda_{kind}_{network}.yaml"))
                }
            )
            for kind in ("grid", "ratio")
        }
        assert ratios["ratio"] == pytest.approx(ratios["grid"], abs=1e-4)
        assert len(ratios["ratio"]) == 63


def test_the_bounded_lambdas_add_up_to_1() -> None:
    for path in FOLDER.glob("lambda_bounded_*.yaml"):
        for trial in expand(load_sweep(path)):
            algorithm = trial.config.algorithm
            assert algorithm.lambda_vsr + algorithm.lambda_hifr == 1
