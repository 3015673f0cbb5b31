from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

from fedvsr.cli.common import interruptible
from fedvsr.cli.sweep_view import SweepView, trials_table
from fedvsr.cli.tune import _prepare
from fedvsr.config import load_config
from fedvsr.data.split import Split
from fedvsr.models.spec import RELEASED_FLOW
from fedvsr.tuning.sweep import load_sweep, save_sweep
from fedvsr.tuning.table import Note, write_trials
from tests.unit.cli.test_cli import fedvsr
from tests.unit.report.synthetic import write_run

TUNE_CONFIGS = Path(__file__).parents[3] / "tune_configs"


def test_a_dry_run_prints_trials_cost_and_concurrency(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    file = str(TUNE_CONFIGS / "lambda_grid_rvrt.yaml")
    assert fedvsr("tune", file, "--dry-run", "--max-concurrent", "1") == 0
    printed = capsys.readouterr().out
    assert "lambda_grid_rvrt: 100 trials; 1 at once on this machine; 3,680 GPU hours" in printed
    assert "3,680 hours of time (The paper's 46 hours" in printed
    lines = [line for line in printed.splitlines() if not line.startswith("missing here: ")]
    assert lines[0].split() == ["trial", "lambda_vsr", "lambda_hifr", "rounds", "GPU", "hours"]
    assert lines[13].split() == ["12", "0.2", "0.3", "20", "36.8"]


def test_a_dry_run_without_gpus_says_what_the_hours_and_the_data_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stores" / "reds").mkdir(parents=True)
    assert fedvsr("tune", str(TUNE_CONFIGS / "table1.yaml"), "--dry-run") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == [
        "missing here: data.test: there is no stores/vid4",
        f"missing here: model.flow_weights: there is no stores/{RELEASED_FLOW}",
        "missing here: data.train: there is no stores/kinetics",
        "missing here: data.test: there is no stores/reds4",
    ], "stores/reds exists"
    assert "6,624 GPU hours, but this machine has no GPU, and the time on processors" in printed[-1]
    assert "hours of time" not in printed[-1]


def test_a_dry_run_of_a_searcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    sweep = {
        "name": "s",
        "base": "demo",
        "space": {"local.lr": {"uniform": [0, 1]}},
        "searcher": {"name": "optuna", "num_samples": 7},
    }
    path.write_text(yaml.safe_dump(sweep))
    assert fedvsr("tune", str(path), "--dry-run") == 0
    assert "7 trials, which optuna chooses" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{file}", "--set", "local.stpes=1"], "trial 0 (lambda_vsr=0.1 lambda_hifr=0.1): local.s"),
        (["{file}", "--resume"], "there is no sweep at"),
        (
            ["{file}", "--resume", "--max-concurrent", "2"],
            "keeps the limit that it was started with",
        ),
        (["{file}", "--address", "ray://h:1"], "must run on a machine of the cluster"),
        (["nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["{file}"], "model.flow_weights: there is no file stores/spynet_"),
        (["{file}", "--set", f"model.flow_weights={__file__}"], "there is no data set"),
    ],
)
def test_mistakes_cost_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(TUNE_CONFIGS / "lambda_grid_rvrt.yaml")
    filled = [a.format(file=file) for a in arguments]
    assert fedvsr("tune", *filled, "--out", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_sweep_prints_the_notes_of_its_runs_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Split((), (), ("a clip",))
    monkeypatch.setattr("fedvsr.runs.launch.prepare_data", lambda *_: split)
    mu = "algorithm={name: fedprox, mu: 1}"
    configs = [load_config("demo", [mu, *more]) for more in ([], [], ["model.name=rvrt"])]
    _prepare(configs, resume=False)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line[:40] for line in lines) == [
        "1 of 3 trials: optical flow starts from ",
        "algorithm.mu = 1 is large: the FedVSR pa",
        "clients train on 1 of the test clips: th",
    ]
    _prepare(configs, resume=True)
    assert capsys.readouterr().out == ""


ROWS: list[dict[str, Any]] = [
    {
        "sweep": "s",
        "trial": i,
        "run_id": f"r{i}",
        "status": "finished",
        "round_idx": 3,
        "evaluated_round_idx": 3,
        "num_rounds": 3,
        "loss": 0.5,
        "test_set": "t",
        "psnr_db": 30.0 + i,
        "ssim": 0.8,
        "bicubic_psnr_db": 29.0,
        "rounds_s": 12.3,
        "attempts": 1,
        "algorithm.lambda_vsr": (i % 3) / 2,
        "algorithm.lambda_hifr": (i // 3) / 2,
    }
    for i in range(9)
]
SWEPT = ["algorithm.lambda_vsr", "algorithm.lambda_hifr"]


def test_a_report_prints_the_best_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweeps" / "s"
    folder.mkdir(parents=True)
    source = tmp_path / "s.yaml"
    space = {key: {"grid": [0.0, 0.5, 1.0]} for key in SWEPT}
    source.write_text(
        yaml.safe_dump({"name": "s", "base": "demo", "space": space}, sort_keys=False)
    )
    save_sweep(load_sweep(source), folder / "sweep.yaml")
    pending = {"sweep": "s", "trial": 9, "run_id": "r9", "status": "pending", "round_idx": 0}
    rows = [*ROWS, {**pending, "num_rounds": 3, "attempts": 0}]
    write_trials(folder / "trials.parquet", rows, SWEPT)
    assert fedvsr("tune-report", "s", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "9 finished, 1 pending" in printed
    lines = printed.splitlines()
    assert lines[1].split()[:3] == ["trial", "lambda_vsr", "lambda_hifr"]
    assert [line.split()[0] for line in lines[2:7]] == ["8", "7", "6", "5", "4"]
    for name in ("heat_map.png", "parallel.png"):
        assert (folder / name).stat().st_size > 5000
        assert name in printed
    assert printed.endswith(f"\nopen {folder / 'heat_map.png'}\n")
    assert not (folder / "curve.png").exists(), "two free settings make no curve"
    assert fedvsr("tune-report", "nothing", "--out", str(tmp_path)) == 2
    assert "there is no sweep at" in capsys.readouterr().err


def killed_sweep(tmp_path: Path, statuses: dict[str, str]) -> Path:
    """The folder of a sweep that was killed; `statuses` of its runs as their own rows have them."""
    folder = tmp_path / "sweeps" / "s"
    source = tmp_path / "s.yaml"
    space = {"algorithm.alpha": {"grid": list(range(1, len(statuses) + 1))}}
    source.write_text(yaml.safe_dump({"name": "s", "base": "demo", "space": space}))
    rows = []
    for i, (run_id, status) in enumerate(statuses.items()):
        run = write_run(folder / "runs", run_id, status=status, psnr_db=lambda r, _, i=i: 30.0 + i)
        (run / "config.yaml").write_text(load_config("demo").to_yaml())
        Note({"algorithm.alpha": i + 1}, 1, run_id).write(run)
        rows.append({**ROWS[i], "run_id": run_id, "status": "running", "algorithm.alpha": i + 1.0})
    save_sweep(load_sweep(source), folder / "sweep.yaml")
    write_trials(folder / "trials.parquet", rows, ["algorithm.alpha"])
    return folder


def test_trials_whose_process_is_gone_are_not_called_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = killed_sweep(tmp_path, {"a": "finished", "b": "running", "c": "running"})
    (folder / "runs" / "c" / "config.yaml").write_text("hello: world")
    for name in ("heat_map.png", "parallel.png"):
        (folder / name).write_bytes(b"of an earlier report")
    assert fedvsr("tune-report", str(folder)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "s  2 stopped, 1 finished"
    assert "running" not in "".join(printed)
    assert f"skipped {folder}/runs/c: config.yaml is no configuration" in caplog.text
    assert [path.name for path in folder.glob("*.png")] == ["curve.png"], "no older picture is left"


def test_one_free_setting_gives_a_curve_and_bounded_ones_do_too(tmp_path: Path) -> None:
    from fedvsr.report.sweep import draw

    table = pd.DataFrame(ROWS)
    one = table[table["algorithm.lambda_hifr"] == 0]
    drawn = draw(one, SWEPT, "psnr_db", "max", tmp_path)
    assert [path.name for path in drawn] == ["curve.png"]
    bounded = table[table["algorithm.lambda_vsr"] + table["algorithm.lambda_hifr"] == 1]
    drawn = draw(bounded, SWEPT, "psnr_db", "max", tmp_path)
    assert [path.name for path in drawn] == ["heat_map.png", "curve.png", "parallel.png"]


def test_a_running_sweep_prints_changes() -> None:
    console = Console(file=io.StringIO(), width=200)
    running = {**ROWS[0], "status": "running", "round_idx": 2, "evaluated_round_idx": 1}
    further = {**running, "round_idx": 3}
    pending = {"trial": 1, "run_id": "p", "status": "pending", "round_idx": 0, "num_rounds": 3}
    with SweepView(console, SWEPT) as view:
        for rows in ([running, pending], [further, pending], [ROWS[0], pending]):
            view(rows)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "trial 0  lambda_vsr=0 lambda_hifr=0  running  round 1/3  loss 0.5000  test set t  "
        "RGB PSNR 30.00 dB  over bicubic +1.00 dB  SSIM 0.8000  seconds 12",
        "trial 0  lambda_vsr=0 lambda_hifr=0  finished  round 3/3  loss 0.5000  test set t  "
        "RGB PSNR 30.00 dB  over bicubic +1.00 dB  SSIM 0.8000  seconds 12",
    ], "a line for each change, and none for what is the same or pending"
    assert trials_table(ROWS, SWEPT).row_count == 9
    terminal = Console(file=io.StringIO(), width=120, force_terminal=True)
    with SweepView(terminal, SWEPT) as view:
        view([running, pending])
    assert isinstance(terminal.file, io.StringIO)
    assert "2 trials: 1 running, 1 pending" in terminal.file.getvalue()


def test_sigterm_does_what_ctrl_c_does() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    received = list[int]()
    try:
        with interruptible():
            # As Ray Tune does, to save its state before it ends.
            signal.signal(signal.SIGINT, lambda number, _: received.append(number))
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGINT]
            # As a shell does to its background jobs.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before[1]
    finally:
        signal.signal(signal.SIGINT, before[0])
