from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr.errors import UserError
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.runner import opened
from fedvsr.tuning.sweep import load_sweep

SWEEP = SweepConfig.model_validate(
    {"name": "s", "base": "demo", "space": {"local.lr": {"grid": [0.1, 0.2]}}}
)


def test_a_sweeps_folder_is_written_once_and_locked(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with (
        pytest.raises(UserError, match=r"there is no sweep at .* to resume"),
        opened(SWEEP, folder, resume=True),
    ):
        pass
    with opened(SWEEP, folder, resume=False):
        assert load_sweep(folder / "sweep.yaml") == SWEEP
        message = r"another process runs the sweep in .*; wait for it"
        with pytest.raises(UserError, match=message), opened(SWEEP, folder, resume=True):
            pass
    with opened(SWEEP, folder, resume=True):
        pass
    with pytest.raises(UserError, match="--resume resumes it"), opened(SWEEP, folder, False):
        pass
    other = SWEEP.model_copy(update={"metric": "ssim"})
    with (
        pytest.raises(UserError, match="is another sweep: the file or --set"),
        opened(other, folder, resume=True),
    ):
        pass
