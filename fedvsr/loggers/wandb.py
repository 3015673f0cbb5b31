"""Weights & Biases: one run of its own for each run here, which a resumed run continues."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedvsr.checked_text import read_json, write_json
from fedvsr.loggers.config import WandbConfig
from fedvsr.loggers.feed import Ending, Picture, Round
from fedvsr.loggers.subject import Subject

FOLDER = "wandb"
_LOGGED = "logged.json"
_START_S, _FINISH_S = 60.0, 50.0


class WeightsAndBiases:
    """Logs a run to Weights & Biases, or to files that `wandb sync` sends.

    A file says what was logged, because an offline run cannot be asked.

    Args:
        config: the project and the mode.
        subject: the run.
    """

    def __init__(self, config: WandbConfig, subject: Subject) -> None:
        import wandb

        self._subject = subject
        self._file = subject.folder / FOLDER / _LOGGED
        self._file.parent.mkdir(exist_ok=True)
        self.last_round = _logged(self._file)
        settings = wandb.Settings(
            silent=True,
            console="off",
            symlink=False,
            disable_git=True,
            save_code=False,
            init_timeout=_START_S,
            finish_timeout=_FINISH_S,
            finish_timeout_raises=True,
        )
        self._run: Any = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            mode=config.mode,
            id=subject.run_id,
            name=subject.run_id,
            dir=str(subject.folder),
            config={**subject.settings, **subject.facts},
            resume="allow",
            # A notebook's own run of Weights & Biases goes on.
            reinit="create_new",
            settings=settings,
        )
        _remove_links(self._file.parent)

    def log(self, finished: Round) -> None:
        """Add a round's values. Those of the last round wait for its pictures."""
        step = finished.round_idx
        is_last = step >= self._subject.num_rounds
        self._run.log({**finished.values}, step=step, commit=not is_last)
        self.last_round = step
        if not is_last:
            write_json(self._file, {"round_idx": step})

    def end(self, ending: Ending) -> None:
        """Add the pictures and the last scores, and end the run."""
        import wandb

        shown: dict[str, Any] = {
            f"frames/{clip}": [wandb.Image(str(p.path), caption=p.kind) for p in pictures]
            for clip, pictures in _by_clip(ending.pictures).items()
        }
        if ending.scores:
            names = list(ending.scores[0])
            rows = [[row[name] for name in names] for row in ending.scores]
            shown["scores"] = wandb.Table(columns=names, data=rows)
        if shown:
            self._run.log(shown, step=ending.round_idx)
        self._run.finish(exit_code=0 if ending.status == "finished" else 1)
        _remove_links(self._file.parent)
        write_json(self._file, {"round_idx": self.last_round})


def _by_clip(pictures: Iterable[Picture]) -> dict[str, list[Picture]]:
    clips = defaultdict[str, list[Picture]](list)
    for picture in pictures:
        clips[picture.clip].append(picture)
    return clips


def _remove_links(folder: Path) -> None:
    """Remove links to logs in the user's own folder: `fedvsr fetch` takes no links."""
    for path in folder.glob("*/logs/*"):
        if path.is_symlink():
            path.unlink()


def _logged(path: Path) -> int:
    """The last round that was logged for certain; -1 if there is none."""
    try:
        return int(read_json(path)["round_idx"])
    except FileNotFoundError:
        return -1
