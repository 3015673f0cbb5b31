from __future__ import annotations

import logging
from logging.handlers import BufferingHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs
import pytest
from fsspec.implementations.local import LocalFileSystem
from ray.train._internal.storage import _FilesystemSyncer
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

from fedvsr.errors import UserError
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.runner import _silence_tune, opened
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


class Renaming(LocalFileSystem):
    """A copy's target; while it is written, a file of the source gets its final name."""

    def __init__(self, temporary: Path) -> None:
        super().__init__()
        self._temporary = temporary

    def mkdir(self, path: str, *arguments: Any, **settings: Any) -> None:
        # By now, the files of the source have been listed.
        if path.endswith("subfolder") and self._temporary.exists():
            self._temporary.rename(self._temporary.with_name("state.json"))
        super().mkdir(path, *arguments, **settings)


@pytest.mark.parametrize(("temporary", "num_logged"), [(".1-tmp-state.json", 0), ("lost.json", 1)])
def test_tune_does_not_speak_of_its_temporary_files(
    temporary: str, num_logged: int, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "subfolder").mkdir(parents=True)
    (source / temporary).touch()
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(Renaming(source / temporary)))
    storage: Any = SimpleNamespace(
        syncer=_FilesystemSyncer(storage_filesystem=filesystem),
        experiment_driver_staging_path=str(source),
        experiment_fs_path=str(target),
    )
    _silence_tune()
    manager = _ExperimentCheckpointManager(storage=storage, checkpoint_period=0)
    # Old releases of Ray hand no record on to the loggers above theirs.
    logger, handler = (
        logging.getLogger(_ExperimentCheckpointManager.__module__),
        BufferingHandler(9),
    )
    logger.addHandler(handler)
    try:
        manager.sync_up_experiment_state(lambda: None)
        manager.sync_up_experiment_state(lambda: None, force=True, wait=True)
    finally:
        logger.removeHandler(handler)
    assert len(handler.buffer) == num_logged
    assert (target / "state.json").exists(), "the second copy has what the first one missed"
