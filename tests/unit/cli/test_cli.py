from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors import safe_open

from fedvsr import cli, load_results, models
from fedvsr.algorithms import reference
from fedvsr.data.config import REDS4
from fedvsr.data.testsets import VID4
from fedvsr.lookup import names
from tests.conftest import moving_texture, write_video
from tests.unit.report.synthetic import write_run


def fedvsr(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    before = sys.argv
    sys.argv = ["fedvsr", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.argv = before
    raise AssertionError("main() always exits")


def test_help_names_every_command_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedvsr("--help") == 0
    text = capsys.readouterr().out
    commands = ["run", "upscale", "evaluate", "data", "presets", "config", "show", "list"]
    commands += ["algorithms", "submit", "jobs", "logs", "stop", "fetch", "doctor", "tune"]
    commands += ["report", "watch", "export"]
    for command in commands:
        assert re.search(rf"\b{command}\b +[A-Z]", text), f"{command} has no help line"
        assert fedvsr(command, "--help") == 0
        assert "Usage" in capsys.readouterr().out
    assert fedvsr("--version") == 0
    assert capsys.readouterr().out.startswith("fedvsr ")


def test_algorithms_are_listed_with_their_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedvsr("algorithms") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if not line.startswith(" ")} == {
        "algorithm",
        *names("fedvsr.algorithms"),
    }
    (scaffold,) = (line.split() for line in lines if line.startswith("scaffold"))
    assert scaffold[1:5] == ["control", "control", "2x", "2x"]
    assert fedvsr("algorithms", "--markdown") == 0
    assert capsys.readouterr().out == reference()


def test_presets_and_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedvsr("presets") == 0
    assert "demo" in capsys.readouterr().out
    assert fedvsr("config", "demo", "--set", "local.lr=0.5") == 0
    assert yaml.safe_load(capsys.readouterr().out)["local"]["lr"] == 0.5
    assert fedvsr("config", "--schema") == 0
    assert "local" in json.loads(capsys.readouterr().out)["properties"]


def test_a_run_from_the_first_command_to_its_files(
    small_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "results")
    assert fedvsr("run", str(small_yaml), "--executor", "serial", "--out", out) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"round 3/3  clients \d,\d  loss 0\.\d+  test set held-out  RGB PSNR \d+\.\d\d dB", printed
    )
    (folder,) = Path(out).iterdir()
    for name in ("config.yaml", "curves.png", "comparison.png"):
        assert (folder / name).stat().st_size > 500, name
    assert not list(folder.rglob("*.tmp"))

    rounds = pd.read_parquet(folder / "rounds.parquet")
    assert rounds["round_idx"].tolist() == [0, 1, 2, 3]
    assert rounds["loss"].isna().tolist() == [True, False, False, False]
    results = load_results(out)
    assert len(results.clients) == 3 * 2
    assert results.clients.groupby("round_idx")["weight"].sum().to_numpy() == pytest.approx(1)
    scores = results.evaluations
    first = scores[scores["round_idx"] == 0]
    assert first["psnr_db"].to_numpy() == pytest.approx(first["bicubic_psnr_db"], abs=0.01)
    assert scores["psnr_db"].iloc[-1] > scores["bicubic_psnr_db"].iloc[-1]
    assert results.runs["status"].tolist() == ["finished"]
    assert results.runs["psnr_db"].iloc[0] == pytest.approx(scores["psnr_db"].iloc[-1])

    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        network = models.build(**json.loads(file.metadata()["fedvsr"])["model"])
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118

    assert fedvsr("list", "--out", out) == 0
    assert folder.name in capsys.readouterr().out.replace("\n", "")
    assert fedvsr("show", folder.name, "--out", out) == 0
    assert "mean" not in capsys.readouterr().out, "one clip needs no mean"
    assert fedvsr("show", str(folder)) == 0
    assert fedvsr("run", str(small_yaml), "--executor", "serial", "--out", out, "--resume") == 2
    assert "of this configuration has finished; leave --resume out" in capsys.readouterr().err


# Libraries that take longer to load than a quick command may last, the costliest first.
HEAVY = ("torch", "torchvision", "ray", "matplotlib", "pandas")
# What also the quickest do without: those that read no table and no configuration. Typer itself
# loads pydantic.
COSTLY = (*HEAVY, "pyarrow", "numpy", "av", "PIL", "yaml", "filelock", "fedvsr.section")
# In the order in which one process executes them: what one loads stays loaded.
QUICK = [
    (COSTLY, ["--version"]),
    (COSTLY, ["--help"]),
    (COSTLY, ["report", "--help"]),
    (COSTLY, ["doctor", "--help"]),
    (HEAVY, ["tag", "one", "--out", "."]),
    (HEAVY, ["note", "one", "--out", "."]),
    (HEAVY, ["list", "--out", "."]),
    (HEAVY, ["show", "one", "--out", "."]),
    (HEAVY, ["presets"]),
    (HEAVY, ["config", "demo"]),
    (HEAVY, ["algorithms"]),
]


def test_quick_commands_load_no_heavy_library(tmp_path: Path) -> None:
    write_run(tmp_path, "one", clips=["a", "b"])
    # A run that failed before its first scores.
    (write_run(tmp_path, "two", done=0) / "evaluations.parquet").unlink()
    code = """if True:
        import os, sys, json
        from fedvsr.cli import app, main

        def check(forbidden, words):
            sys.argv = ["fedvsr", *words]
            try:
                main()
            except SystemExit as ended:
                assert not ended.code, words
            loaded = {*forbidden} & {*sys.modules}
            assert not loaded, f"{words} loads {loaded}"

        quick, costly = json.loads(os.environ.pop("QUICK"))
        # A shell asks at each Tab.
        os.environ |= {"_FEDVSR_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
        for line in ("fedvsr show ", "fedvsr run ", "fedvsr tune-report "):
            os.environ["COMP_WORDS"] = line
            check(costly, [])
        os.environ["COMP_CWORD"] = "3"
        for line in ("fedvsr list --algorithm ", "fedvsr list --model "):
            os.environ["COMP_WORDS"] = line
            check(costly, [])
        del os.environ["_FEDVSR_COMPLETE"]
        for forbidden, words in quick:
            check(forbidden, words)
        """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "QUICK": json.dumps([QUICK, COSTLY])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_list_shows_runs_at_any_depth_and_collected_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "sweeps" / "s" / "runs", "deep", psnr_db=lambda *_: 30.0)
    write_run(tmp_path, "begun", status="running", done=0, clips=())
    assert fedvsr("list", "--out", str(tmp_path)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(lines) == [
        ["begun", "stopped", "tiny", "fedavg", "1", "0/2"],
        ["deep", "finished", "tiny", "fedavg", "1", "2/2", "held-out", "30.00", "+1.00"],
    ]
    collected = tmp_path / "collected"
    collected.mkdir()
    for name in ("runs", "rounds"):
        tables = [pq.read_table(path) for path in sorted(tmp_path.rglob(f"{name}.parquet"))]
        pq.write_table(pa.concat_tables(tables), collected / f"{name}.parquet")
    assert fedvsr("list", "--out", str(collected)) == 0
    printed = capsys.readouterr().out
    assert re.search(r"deep +finished .* 2/2", printed)
    assert fedvsr("show", str(collected)) == 2
    assert "holds the tables of 2 runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ((30.0, 31.0, float("nan")), ["held-out", "31.00", "+2.00"]),
        ((30.0, 31.0, 32.0), ["held-out", "32.00", "+3.00"]),
        ((30.0, float("nan"), float("inf")), ["held-out", "inf", "+inf"]),
        ((float("nan"),) * 3, []),
    ],
)
def test_list_shows_the_newest_score_that_is_a_number(
    scores: tuple[float, ...], shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Like a run that was killed: its own row has no scores.
    write_run(tmp_path, "one", status="running", psnr_db=lambda r, _: scores[r])
    assert fedvsr("list", "--out", str(tmp_path)) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["one", "stopped", "tiny", "fedavg", "1", "2/2", *shown]


def test_a_damaged_run_is_listed_by_nobody_and_shown_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, "good")
    bad = write_run(tmp_path, "bad")
    (bad / "rounds.parquet").write_bytes(b"PAR1")
    assert fedvsr("list", "--out", str(tmp_path)) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "good"]
    assert f"skipped {bad}: rounds.parquet is damaged" in caplog.text
    assert fedvsr("show", str(bad)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {bad}/rounds.parquet is damaged")
    assert err.count("\n") == 1


def test_no_mean_mixes_two_test_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"videos": [], "train": ["reds"], "held_out": "reds4", "test": ["sets/Vid4"]}
    folder = write_run(
        tmp_path, "one", clips=[*REDS4, *VID4], data=data,
        psnr_db=lambda _, clip: 31.0 if clip in REDS4 else 25.0,
    )  # fmt: skip
    assert fedvsr("show", str(folder)) == 0
    rows = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    shown = {row[0]: row[1:] for row in rows}
    assert shown["REDS4: 000"][:4] == ["3", "29.00 dB", "31.00 dB", "+2.00 dB"]
    assert shown["mean of REDS4"][:3] == ["29.00 dB", "31.00 dB", "+2.00 dB"]
    assert shown["mean of Vid4"][:3] == ["29.00 dB", "25.00 dB", "-4.00 dB"]
    assert shown["mean of Vid4"][-2:] == ["26.00 dB", "0.2600"], "luma"
    assert fedvsr("list", "--out", str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[6:] == ["REDS4", "31.00", "+2.00"]
    assert fedvsr("watch", str(folder)) == 0
    assert "test set REDS4  RGB PSNR 31.00 dB" in capsys.readouterr().out


LONG = "a-clip-with-a-name-of-many-words-[red]-and-[brackets]-" + "x" * 80


def test_a_pipe_cuts_no_name_and_a_narrow_terminal_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path, "one", clips=[LONG, "b"], settings={"evaluation": {"crop": 64}})
    assert fedvsr("show", str(folder)) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^{re.escape(LONG)} +3 +29.00 dB +32.00 dB", printed, re.MULTILINE)
    assert "test clip (held-out, centred 64-pixel crop)" in printed
    monkeypatch.setenv("COLUMNS", "40")
    assert fedvsr("show", str(folder)) == 0
    narrow = capsys.readouterr().out
    assert LONG in narrow
    for fact in ("  PSNR          32.00 dB", "  bicubic SSIM  0.2900"):
        assert narrow.count(f"{fact}\n") == 3, "two clips and their mean"
    assert fedvsr("list", "--out", str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "one", "  status       finished", "  model        tiny", "  algorithm    fedavg",
        "  seed         1", "  rounds       2/2", "  test set     held-out",
        "  RGB PSNR dB  32.00", "  gain dB      +3.00",
    ]  # fmt: skip


def test_show_says_that_clients_share_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for isolation, is_said in (("slot", True), ("client", False)):
        folder = write_run(tmp_path, isolation, settings={"cluster": {"isolation": isolation}})
        assert fedvsr("show", str(folder)) == 0
        assert ("cluster.isolation = slot" in capsys.readouterr().out) == is_said


def test_show_averages_over_clients_and_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    psnr_db = {"a": 30.0, "b": 31.0}
    folder = write_run(tmp_path, "one", psnr_db=lambda r, clip: psnr_db[clip] + r)
    path = folder / "evaluations.parquet"
    table = pq.read_table(path)
    higher = table.set_column(
        table.schema.get_field_index("psnr_db"), table.schema.field("psnr_db"),
        pc.add(table["psnr_db"], 1.0),
    )  # fmt: skip
    pq.write_table(pa.concat_tables([table, higher]), path)
    assert fedvsr("show", str(folder)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Round 2 of two clients, 1 dB apart; bicubic has 29 dB.
    assert ["a", "3", "29.00", "dB", "32.50", "dB", "+3.50", "dB"] in [row[:8] for row in rows]
    assert ["mean", "29.00", "dB", "33.00", "dB", "+4.00", "dB"] in [row[:7] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "dmeo"], "did you mean 'demo'"),
        (["run", "demo", "--set", "local.stpes=1"], "local.stpes is not a setting"),
        (["run", "demo", "--set", "data.videos=[nowhere.mp4]"], "there is no video"),
        (["run", "demo", "--resume", "--out", "{tmp}"], "no run of this configuration"),
        (["show", "nothing", "--out", "{tmp}"], "there is no run nothing: "),
        (["list", "--out", "{tmp}/nowhere"], "there is no folder"),
    ],
)
def test_mistakes_cost_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedvsr(*(a.format(tmp=tmp_path) for a in arguments)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_usage_mistakes_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedvsr("run", "--nonsense") == 2
    assert "No such option" in capsys.readouterr().err


def test_internal_errors_exit_with_1_and_debug_shows_the_traceback(
    small_yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr("fedvsr.runs.launch.prepare_data", fail)
    assert fedvsr("run", str(small_yaml)) == 1
    err = capsys.readouterr().err
    assert err == "internal error: ZeroDivisionError: broken (--debug shows the traceback)\n"
    assert fedvsr("--debug", "run", str(small_yaml)) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "", "f.mp4"), "no space left on the disk of f.mp4; free some"),
        (OSError(errno.EDQUOT, "quota"), "no space left on the disk; free some"),
        (
            PermissionError(errno.EACCES, "Permission denied", "f.mp4"),
            "cannot access f.mp4: Permission denied; check its permissions",
        ),
    ],
)
def test_errors_of_the_disk_cost_one_line_and_exit_code_2(
    error: OSError,
    message: str,
    small_yaml: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("fedvsr.runs.launch.prepare_data", fail)
    assert fedvsr("run", str(small_yaml)) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_failed_run_says_why_and_can_be_resumed(
    small_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(small_yaml), "--executor", "serial", "--out", str(tmp_path)]
    hot = ["--set", "local.lr=1", "--set", "algorithm.lambda_vsr=100", "--set", "local.steps=400"]
    code = fedvsr(*arguments, *hot, "--set", "model.channels=64", "--set", "model.blocks=20")
    err = capsys.readouterr().err
    assert code == 2, err
    assert re.search(r"error: the loss of client \d is (nan|inf) in round \d, step \d+; lower", err)
    row = load_results(tmp_path).runs.iloc[0]
    assert row["status"] == "failed"
    assert "lower local.lr" in row["error"]


def test_a_run_of_two_videos_shows_their_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / f"{i}.mp4") for i in range(2)]
    for i, name in enumerate(names):
        write_video(Path(name), moving_texture(12, 32, 32, seed=i))
    settings = [
        f"data.videos=[{','.join(names)}]",
        "data.clip_frames=4",
        "data.num_clients=2",
        f"data.cache_dir={tmp_path}/cache",
        "federation.num_rounds=1",
        "federation.clients_per_round=2",
        "local.steps=1",
        "local.num_frames=2",
        "local.crop=16",
        "evaluation.every_rounds=2",
    ]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    out = tmp_path / "out"
    assert fedvsr("run", "demo", *flags, "--executor", "serial", "--out", str(out)) == 0
    assert re.search(r"\nmean +\d+\.\d\d dB", capsys.readouterr().out)
    scores = load_results(out).evaluations
    assert set(scores["test_set"]) == {"held-out"}
    assert scores["round_idx"].tolist() == [0, 0, 1, 1], "the last round is always scored"
    assert np.isfinite(scores[["psnr_db", "psnr_y_db"]]).all(axis=None)
