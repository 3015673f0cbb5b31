"""`fedvsr audit` writes what an attack found, and refuses in one line what it cannot attack."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from fedvsr.checked_text import read_json, write_yaml
from fedvsr.config import load_config
from fedvsr.runs.run import stored_config
from tests.unit.cli.test_cli import fedvsr


def test_shows_what_was_found_beside_the_frames(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--iterations", "2", "--crop", "44", "--cases", "secure-sum,noise-0.1,plain,run"]
    assert fedvsr("audit", str(undisturbed), *quick, "--out", str(tmp_path / "one")) == 0
    assert "clipped, noise 0.1" in capsys.readouterr().out
    figures = read_json(tmp_path / "one" / "audit.json")
    assert figures["round_idx"] == 3
    assert figures["is_recorded_update"] is True
    plain, _, summed, run = figures["cases"]
    names = [case["case"] for case in figures["cases"]]
    assert names == ["plain", "noise-0.1", "secure-sum", "run"]
    # One small step of each of the round's two clients; the attack sees the sum alone.
    assert (summed["num_steps"], summed["num_samples"]) == (1, 2)
    assert summed["update"] == "secure sum: 2 clients' updates"
    assert summed["update_norm"] == plain["update_norm"]
    assert summed["mismatch"] != plain["mismatch"]
    assert (plain["num_steps"], plain["num_samples"]) == (1, 1)
    assert (run["num_steps"], run["num_samples"]) == (3, 6)
    assert all(math.isfinite(plain[name]) for name in ("lq_psnr_db", "lq_ssim", "gt_psnr_db"))
    # The network's input is 8 pixels wide here, too small for SSIM.
    assert run["lq_ssim"] is None
    with Image.open(tmp_path / "one" / "audit.png") as sheet:
        assert sheet.width > 800
    page = (tmp_path / "one" / "audit.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 * 4
    assert "A failed attack proves nothing" in page
    # Deterministic for a seed.
    assert fedvsr("audit", str(undisturbed), *quick, "--out", str(tmp_path / "two")) == 0
    assert json.dumps(read_json(tmp_path / "two" / "audit.json")) == json.dumps(figures)


def test_what_cannot_be_attacked_is_refused_in_one_line(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*options: str, run: Path = undisturbed) -> str:
        assert fedvsr("audit", str(run), *options, "--out", str(tmp_path / "out")) == 2
        assert not (tmp_path / "out").exists()
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "--round 2" in refusal("--round", "2")
    assert "--client 9: it did not train in round 3" in refusal("--client", "9")
    assert "'nonsense': nonsense is no case; give some of plain,clip," in refusal(
        "--cases", "nonsense"
    )
    assert "--crop 30 is not a multiple of the scale, 4" in refusal("--crop", "30")
    assert "--crop 64 is larger than clip" in refusal("--crop", "64")
    for name, reason in (("local", "send no updates"), ("scaffold", "changes gradients")):
        other = tmp_path / name
        other.mkdir()
        (other / "clients.parquet").symlink_to(undisturbed / "clients.parquet")
        settings = stored_config(undisturbed).to_yaml()
        (tmp_path / f"{name}.yaml").write_text(settings, encoding="utf-8")
        changed = load_config(str(tmp_path / f"{name}.yaml"), [f"algorithm={{name: {name}}}"])
        write_yaml(other / "config.yaml", changed.kept_yaml())
        assert reason in refusal("--round", "1", run=other)
