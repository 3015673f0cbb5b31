"""The commands for plug-ins: `new`, `check`, `data prepare ./mine.py`, and the lists."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedvsr.contracts import algorithm, network
from tests.unit.cli.test_cli import fedvsr
from tests.unit.test_plugins import METHOD, write


@pytest.mark.parametrize("kind", ["algorithm", "network"])
def test_a_new_file_holds_its_contracts_and_passes_its_test(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = ("new", kind, "mine", "--out", str(tmp_path))
    assert fedvsr(*new) == 0
    lines = [line.strip() for line in (tmp_path / "mine.py").read_text().splitlines()]
    code = [line for line in lines if line and not line.startswith("#")]
    assert 20 <= len(code) <= 45
    assert fedvsr("check", str(tmp_path / "mine.py")) == 0
    contracts = {"algorithm": algorithm, "network": network}[kind].CONTRACTS
    assert capsys.readouterr().out.count("\nok    ") == len(contracts)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    before = (tmp_path / "mine.py").read_bytes()
    assert fedvsr(*new) == 2
    assert "mine.py exists already, and is left as it is" in capsys.readouterr().err
    assert (tmp_path / "mine.py").read_bytes() == before


def test_a_name_that_cannot_be_a_file_of_ones_own_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fedprox", "a-b", "class", "../x"):
        assert fedvsr("new", "algorithm", name, "--out", str(tmp_path)) == 2
    assert "fedprox is the name of a packaged one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


LAST_ONLY = """
    def aggregate(self, uploads, weights, server, round_info):
        *_, last = uploads
        return Aggregated({"params": last["params"]}, weights)

    def local_loss(self, batch):
        raise KeyError("pace")
"""


def test_check_names_what_does_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = METHOD.replace("import AlgorithmConfig", "import Aggregated, AlgorithmConfig")
    path = write(tmp_path, "bad", text=text + LAST_ONLY)
    assert fedvsr("check", str(path)) == 1
    out = capsys.readouterr().out
    (line,) = (i for i, text in enumerate(path.read_text().splitlines(), 1) if "KeyError" in text)
    assert "FAIL  order of clients does not matter: aggregates in two orders: " in out
    assert (
        f"FAIL  descending the local loss lowers it: bad.py, line {line}: KeyError: 'pace'" in out
    )
    assert "ok    weights follow their client" in out
    assert out.splitlines()[-1] == f"{path}: 5 of 11 contracts do not hold"


def test_check_refuses_what_it_cannot_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half.py").write_text("class Model:\n    pass\n")
    for name, message in {
        "half.py": "has no class Config; give it one",
        "gone.py": "there is no file ",
        "nothing": "nothing is neither an algorithm (",
    }.items():
        assert fedvsr("check", name if "." not in name else str(tmp_path / name)) == 2
        assert message in capsys.readouterr().err


SOURCE = """
from fedvsr.data.recordings import recording


def recordings(source, *, scale, degradation, clip_frames=4):
    videos = sorted(source.glob("*.mp4"))
    return [recording(path, path.stem, "mine", clip_frames=clip_frames) for path in videos], []
"""


def test_a_data_set_is_prepared_by_a_source_of_ones_own(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = write(tmp_path, "mine", text=SOURCE), tmp_path / "store"
    command = ("data", "prepare", str(path), "--source", str(video.parent), "--out", str(store))
    assert fedvsr(*command, "--set", "frames=3") == 2
    assert "recordings() got an unexpected keyword argument 'frames'" in capsys.readouterr().err
    assert fedvsr(*command, "--set", "clip_frames=8") == 0
    manifest = json.loads((store / "manifest.json").read_text())
    assert len(manifest["clips"]) == 5
    # Another source makes other clips.
    write(tmp_path, "mine", text=SOURCE + "\n")
    assert fedvsr(*command, "--set", "clip_frames=8") == 2
    assert "was made with other settings (sha256 " in capsys.readouterr().err


def test_lists_name_those_of_installed_packages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "listed_methods", "listed")
    info = tmp_path / "listed_methods-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: listed_methods\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[fedvsr.algorithms]\nlisted = listed_methods.listed\ngone = listed_methods.gone\n"
        "krum = listed_methods.listed\n"
    )
    importlib.invalidate_caches()
    assert fedvsr("algorithms") == 0
    out = capsys.readouterr().out
    assert "listed (plug-in)" in out
    assert out.count("(plug-in)") == 1
    assert caplog.text.count("skipped") == 1
    assert "skipped the entry point gone (listed_methods.gone): algorithm.name = " in caplog.text
    assert fedvsr("models") == 0
    assert "tiny" in capsys.readouterr().out
