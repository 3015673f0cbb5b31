from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.test_cli import fedvsr


def test_without_a_name_the_sweeps_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedvsr("reproduce") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("table1 ") and "Table 1" in line for line in lines)
    assert not any(line.startswith("smoke") for line in lines)


def test_what_is_missing_is_printed_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    assert fedvsr("reproduce", "overhead", "--data", "data") == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"missing: {tmp_path}/data/reds",
        f"  fedvsr data prepare reds --source REDS --out {tmp_path}/data/reds",
        f"missing: {tmp_path}/data/vid4",
        f"  fedvsr data prepare vid4 --source VID4 --out {tmp_path}/data/vid4",
        f"missing: {tmp_path}/data/spynet_sintel_final-3d2a1287.pth",
        "  SpyNet's released weights (docs/how-to/prepare-data.md, Flow weights): mv "
        f"spynet_sintel_final-3d2a1287.pth {tmp_path}/data/spynet_sintel_final-3d2a1287.pth",
        "missing: a GPU",
        "  on a machine of a cluster with GPUs: --address auto; from elsewhere: --submit "
        "http://HEAD:8265",
    ]
    assert printed.err == "error: overhead cannot start: see what is missing above\n"
    assert list(tmp_path.iterdir()) == []
    assert fedvsr("reproduce", "overhead", "--data", "data", "--size", "demo", "--dry-run") == 0
    printed = capsys.readouterr()
    assert "missing: a GPU" not in printed.out
    assert "overhead-demo: 7 trials" in printed.out.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1"], "--data DIR is missing"),
        (["tabel1", "--data", "d"], "did you mean 'table1'?"),
        (["table1", "--data", "d", "--address", "ray://h:1"], "must run on a machine of the"),
        (["alpha", "--data", "d", "--set", "local.lr=x"], "local.lr = 'x'"),
        (["alpha", "--data", "d", "--submit", "http://h:1"], "--data d: give an absolute path"),
        (
            ["alpha", "--data", "~/d", "--out", "o", "--submit", "http://h:1"],
            "--out o: give an absolute path on the cluster",
        ),
    ],
)
def test_mistakes_cost_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedvsr("reproduce", *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
