"""What the machine offers a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr import environment


def test_a_cgroup_limits_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < environment.available_bytes() < 2**50
    files = {
        "v2/job": {"memory.max": "max", "memory.current": "5"},
        "v2": {"memory.max": "1000", "memory.current": "400"},
        "memory/job": {"memory.limit_in_bytes": "900", "memory.usage_in_bytes": "100"},
    }
    for folder, entries in files.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in entries.items():
            (tmp_path / folder / name).write_text(text + "\n")
    monkeypatch.setattr(environment, "_CGROUPS", tmp_path / "v2")
    assert environment._cgroup_free("", "/job") == [600]
    monkeypatch.setattr(environment, "_CGROUPS", tmp_path)
    assert environment._cgroup_free("memory", "/job") == [800]
