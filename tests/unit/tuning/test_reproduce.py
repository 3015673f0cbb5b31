"""The paper's sweeps on a user's stores, at both sizes, and what they miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr.config import load_config
from fedvsr.data.testsets import REDS4
from fedvsr.errors import UserError
from fedvsr.models.spec import RELEASED_FLOW
from fedvsr.tuning import reproduce
from fedvsr.tuning.sweep import load_sweep
from tests.unit.data import trees
from tests.unit.data.clips import write_store
from tests.unit.tuning.test_configs import EXAMPLES, EXPECTED, FOLDER


def test_every_sweep_of_the_paper_can_be_reproduced() -> None:
    assert reproduce.names() == sorted(set(EXPECTED) - EXAMPLES)
    for name, description in reproduce.descriptions().items():
        assert description == load_sweep(FOLDER / f"{name}.yaml").description
    with pytest.raises(UserError, match=r"table3 is not one of .*; did you mean 'table1'\?"):
        reproduce.planned("table3", Path("d"))


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - EXAMPLES))
def test_a_plan_is_the_sweep_on_the_users_stores(name: str, tmp_path: Path) -> None:
    paper = reproduce.planned(name, tmp_path)
    demo = reproduce.planned(name, tmp_path, "demo")
    assert len(paper.trials) == len(demo.trials) == EXPECTED[name]
    assert (paper.sweep.name, demo.sweep.name) == (name, f"{name}-demo")
    for plan in (paper, demo):
        for trial in plan.trials:
            config = trial.config
            paths = {p for own in config.files().values() for p in own}
            assert {Path(path).parent for path in paths} == {tmp_path}
            assert f"{tmp_path / RELEASED_FLOW}" in paths
            assert config.model.size == plan.size
    for plan in (paper, demo):
        # What a trial was checked with is what a run of its file would have.
        (tmp_path / "trial.yaml").write_text(plan.trials[-1].config.to_yaml())
        assert load_config(str(tmp_path / "trial.yaml")) == plan.trials[-1].config
    for trial in demo.trials:
        assert trial.config.federation.num_rounds == 2
        assert trial.config.cluster.gpu_share == 0
        assert trial.config.evaluation.crop is None, "scores are of whole frames, as the paper's"


def test_a_demo_keeps_what_its_sweep_compares(tmp_path: Path) -> None:
    def swept(name: str, key: str) -> list[object]:
        trials = reproduce.planned(name, tmp_path, "demo").trials
        section, _, field = key.partition(".")
        values = [getattr(getattr(t.config, section), field) for t in trials]
        return sorted(value for i, value in enumerate(values) if value not in values[:i])

    assert swept("clients", "data.num_clients") == [4, 12, 24]
    assert swept("clients", "data.clips_per_client") == [1, 2, 6]
    assert swept("table1", "data.num_clients") == [4]
    assert swept("local_epochs", "local.epochs") == [1, 2, 5]
    epochs = reproduce.planned("local_epochs", tmp_path, "demo").trials
    assert {t.config.local.steps for t in epochs} == {None}, "steps would replace the epochs"
    assert swept("failures", "federation.upload_failure_probability") == [0, 0.25, 0.5, 0.75]
    assert swept("confounds", "local.batch_size") == [1, 4]
    (metrics,) = {
        tuple(t.config.evaluation.metrics) for t in reproduce.planned("table1", tmp_path).trials
    }
    assert metrics == ("lpips", "vmaf")
    assert swept("table1", "evaluation.metrics") == [[]], "they need weights and packages"


def test_settings_of_the_user_come_last(tmp_path: Path) -> None:
    own = ["model.flow_weights=/mine.pth", "federation.num_rounds=1", "local.lr=1e-3"]
    (config, *_) = [t.config for t in reproduce.planned("alpha", tmp_path, "demo", own).trials]
    assert config.model.flow_weights == "/mine.pth"
    assert (config.federation.num_rounds, config.local.lr) == (1, 1e-3)
    with pytest.raises(UserError, match=r"algorithm\.alpha: it is swept"):
        reproduce.planned("alpha", tmp_path, "demo", ["algorithm.alpha=2"])


def test_what_is_missing_is_named_with_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "find_spec", lambda name: name)
    plan = reproduce.planned("table1", tmp_path)
    lacking = {Path(each.what).name: each.remedy for each in reproduce.missing(plan, False)}
    assert set(lacking) == {"reds", "vid4", "kinetics", "reds4", RELEASED_FLOW, "a GPU"}
    assert lacking["reds"] == f"fedvsr data prepare reds --source REDS --out {tmp_path}/reds"
    assert "--clip reds4" in lacking["reds4"]
    assert "prepare-data.md" in lacking[RELEASED_FLOW]
    stores = {"reds": REDS4, "vid4": tuple(trees.VID4_SIZES), "kinetics": ("a",), "reds4": REDS4}
    for name, clips in stores.items():
        write_store(tmp_path / name, dict.fromkeys(clips, trees.texture(1)))
    (tmp_path / RELEASED_FLOW).write_bytes(b"")
    monkeypatch.setattr(reproduce, "find_spec", lambda name: None if name == "lpips" else name)
    assert [each.what for each in reproduce.missing(plan, True)] == ["the package lpips, for lpips"]
    monkeypatch.setattr(reproduce, "find_spec", lambda name: name)
    assert [each.what for each in reproduce.missing(plan, False)] == ["a GPU"]
    assert reproduce.missing(plan, True) == []
    demo = reproduce.planned("table1", tmp_path, "demo")
    assert reproduce.missing(demo, False) == [], "the demo needs no GPU"
