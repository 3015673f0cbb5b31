"""A run's identity: its folder, its lock and its status."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from fedvsr import plugins
from fedvsr.checked_text import read_yaml, write_yaml
from fedvsr.cluster.fetch import forget_folder, record_folder
from fedvsr.errors import DamagedError, FileError, UserError, skipping
from fedvsr.files import missing_folders, remove_folders, remove_temporaries
from fedvsr.labels import add_tags, read_labels, write_note
from fedvsr.lookup import did_you_mean
from fedvsr.records import read_run
from fedvsr.run_names import created

# `run_status` serves `fedvsr list` and `show`, which load no network.
if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import nn

    from fedvsr.config import ExperimentConfig
    from fedvsr.report.compare import Comparison

_LOCK = ".lock"
# Sections of the configuration that decide numbers.
_SECTIONS = ("seed", "data", "model", "algorithm", "federation", "local", "update", "evaluation")


@dataclass(frozen=True)
class Run:
    """A run, and what it has made so far. Its folder is `<out>/<run_id>`."""

    run_id: str
    folder: Path
    config: ExperimentConfig

    @property
    def id(self) -> str:
        """The run's id, `run_id` in its tables."""
        return self.run_id

    @property
    def status(self) -> str:
        """Its status now, see `run_status`."""
        return run_status(self.folder)

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags now, sorted."""
        return read_labels(self.folder).tags

    @property
    def note(self) -> str:
        """Its note now; empty if it has none."""
        return read_labels(self.folder).note

    def label(self, *tags: str, note: str | None = None) -> None:
        """Give it tags besides those that it has, and a note unless that is None.

        Raises:
            UserError: a text is no tag, the note is too long, or the folder is not writable.
        """
        if tags:
            add_tags(self.folder, tags)
        if note is not None:
            write_note(self.folder, note)

    def table(self, name: str) -> pd.DataFrame:
        """One of its tables.

        Args:
            name: `runs`, `rounds`, `clients`, `evaluations`, `partition` or `faults`.

        Returns:
            Its rows so far; `docs/reference/results.md` describes the columns.

        Raises:
            UserError: there is no table of that name, or its file is damaged.
        """
        from fedvsr.records import checked_table
        from fedvsr.schemas import SCHEMAS

        if name not in SCHEMAS:
            raise UserError(
                f"a run has no table {name!r}{did_you_mean(name, SCHEMAS)} (there are: "
                f"{', '.join(SCHEMAS)})"
            )
        table: pd.DataFrame = checked_table(self.folder, name).to_pandas()
        return table

    def plot(self) -> Figure:
        """Its curves: PSNR over bicubic, and the clients' losses, by round.

        Raises:
            UserError: it has no scores yet.
        """
        from fedvsr.report.figures import curves

        return curves(self.folder)

    def compare(self, *others: Run) -> Comparison:
        """Compare its settings and last scores with those of other runs; this is the reference.

        Raises:
            UserError: a run has no scores yet, or no test clip is common to all.
        """
        from fedvsr.report.compare import compare

        return compare([self.folder, *(other.folder for other in others)])

    def model(self) -> nn.Module:
        """Its network with the newest saved weights, on the CPU, in evaluation mode.

        Raises:
            UserError: it has none yet, or has a network per client.
        """
        from fedvsr.inference.trained import find_trained

        return find_trained(str(self.folder), self.folder.parent).network

    def upscale(
        self,
        source: str | Path,
        out: str | Path | None = None,
        *,
        overwrite: bool = False,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    ) -> Path:
        """Super-resolve a video, or a folder of pictures, with its network.

        Args:
            source: the video or the folder.
            out: a .mp4, .mov or .mkv file, or a folder; None: `NAME_x4` beside the source.
            overwrite: whether an existing output may be replaced.
            device: what computes.
            precision: of the network.

        Returns:
            The path that was written. `fedvsr upscale` has more options, and shows its progress.

        Raises:
            UserError: the source cannot be read, the output cannot be written, or see `model`.
        """
        from fedvsr.inference.streaming import Compute
        from fedvsr.inference.upscale import upscale_file

        compute = Compute(device, precision)
        return upscale_file(str(self.folder), Path(source), out, compute, overwrite, print)


def create_run(config: ExperimentConfig, out: Path) -> Run:
    """Make the folder of a new run, with the resolved configuration in it.

    The run's id is the configuration's name, the time and the configuration's hash; runs of the
    same second are numbered.
    """
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    stem = f"{config.name}-{now}-{config.config_hash()[:6]}"
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    for number in count():
        run_id = f"{stem}-{number}" if number else stem
        try:
            (out / run_id).mkdir()
        except FileExistsError:
            continue
        break
    return open_run(config, out / run_id)


def open_run(config: ExperimentConfig, folder: Path) -> Run:
    """The run in a folder, which is made with its configuration and plug-ins if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        plugins.keep(config.plugins(), folder)
        write_yaml(folder / "config.yaml", config.kept_yaml())
    return Run(folder.name, folder.resolve(), config)


def find_run(config: ExperimentConfig, out: Path) -> Run:
    """The newest unfinished run of a configuration under `out`.

    A folder whose `config.yaml` is foreign, broken or of another version is skipped, and named.
    Plug-ins of other runs are not executed.

    Raises:
        UserError: there is none.
    """
    from fedvsr.config import LOADED_ONLY

    wanted, finished, changed = config.config_hash(), list[str](), list[str]()
    folders = (path.parent for path in out.glob("[!.]*/config.yaml"))
    for folder in sorted(folders, key=created, reverse=True):
        with skipping(folder):
            settings = _settings(folder)
            if not plugins.are_of(settings, config.plugins()):
                changed += _changed_plugin(settings, config, folder)
            elif _validated(folder, settings, LOADED_ONLY).config_hash() == wanted:
                if not _is_finished(folder):
                    return Run(folder.name, folder.resolve(), config)
                finished.append(folder.name)
    if changed:
        raise UserError(changed[0])
    if finished:
        raise UserError(
            f"the run {finished[0]} of this configuration has finished; leave --resume out to "
            "start a new one"
        )
    raise UserError(
        f"no run of this configuration under {out}/ to resume; leave --resume out to start one"
    )


def stored_config(folder: Path) -> ExperimentConfig:
    """The configuration in a run's folder. The plug-ins that the folder keeps are executed.

    Raises:
        FileError: it is damaged, edited, foreign or of another version.
    """
    return _validated(folder, _settings(folder))


def _settings(folder: Path) -> dict[str, object]:
    with _explained(folder):
        return read_yaml(folder / "config.yaml")


def _validated(
    folder: Path, settings: dict[str, object], context: Mapping[str, str] | None = None
) -> ExperimentConfig:
    """The configuration of a run's settings; with `config.LOADED_ONLY`, no plug-in is executed."""
    from fedvsr.config import ExperimentConfig
    from fedvsr.settings import anchored

    with _explained(folder):
        return ExperimentConfig.model_validate(anchored(settings, folder), context=context)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        path = folder / "config.yaml"
        raise FileError(path, "is no configuration of this version of fedvsr") from error


def _changed_plugin(
    settings: Mapping[str, Any], config: ExperimentConfig, folder: Path
) -> Iterator[str]:
    """Why an unfinished run cannot be resumed, if its settings differ only in a plug-in's file."""
    own = config.model_dump(mode="json")
    sections = {plugin.kind: settings.get(plugin.kind) for plugin in config.plugins()}
    then = {kind: one for kind, one in sections.items() if isinstance(one, Mapping)}
    others = [key for key in _SECTIONS if key not in sections]
    if (
        len(then) < len(sections)
        or any(settings.get(key) != own[key] for key in others)
        or _is_finished(folder)
    ):
        return
    for plugin in config.plugins():
        before = then[plugin.kind].get(plugins.SHA256)
        same = plugins.stem(str(then[plugin.kind].get("name"))) == plugin.name
        if same and before not in (None, plugin.sha256):
            kept = f"--set {plugin.kind}.name={folder / plugin.file}"
            way_out = f"give {kept}" if plugin.source else "install the earlier version"
            yield (
                f"{plugin.reference} has changed since {folder.name} was started (SHA-256 "
                f"{plugins.shown(plugin.sha256)}, then {plugins.shown(str(before))}): to resume "
                f"with what it was, {way_out}; to start a new run, leave --resume out"
            )


def _is_finished(folder: Path) -> bool:
    try:
        return run_status(folder) == "finished"
    except UserError:
        # Its row is damaged: resuming reads its checkpoints and writes the row again.
        return False


def run_status(folder: Path) -> str:
    """`finished`, `failed`, `interrupted`, `running`, or `stopped` if its process died."""
    row = read_run(folder)
    status = str(row["status"]) if row else "stopped"
    if status != "running":
        return status
    return "running" if _is_locked(folder) else "stopped"


def _is_locked(folder: Path) -> bool:
    """Whether a process holds a run's lock. It writes nothing: results may be read-only."""
    try:
        with (folder / _LOCK).open("rb") as file:
            # Shared, so that looks do not see each other; released as the file is closed.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # No process has locked it yet, or the file system has no locks.
        return False
    return False


def remove_leftovers(out: Path) -> None:
    """Remove the temporary files of runs under `out` whose processes were killed."""
    temporaries = (path for pattern in ("*/.*.tmp", "*/*/.*.tmp") for path in out.glob(pattern))
    for folder in {out / path.relative_to(out).parts[0] for path in temporaries}:
        # A run that was just created has no lock yet.
        if (folder / _LOCK).exists():
            with suppress(UserError), locked(folder):
                remove_temporaries(folder)


@contextmanager
def begun(config: ExperimentConfig, out: Path, found: Run | None = None) -> Iterator[Run]:
    """Create a run, and remove it again if what is done inside fails before the run has begun.

    It is refused, for example, by a cluster that lacks what it asks for. Inside a job, the run is
    recorded as the job's.

    Args:
        config: of the run.
        out: folder of its folder.
        found: an existing run to continue, which is created no more, and never removed.
    """
    new = missing_folders(out)
    run = found or create_run(config, out)
    record_folder(out, run.run_id)
    try:
        yield run
    except Exception:
        # Whatever refused it before it began, for example a cluster that lacks what the run asks
        # for, or weights that cannot be read.
        if not found and not (run.folder / "partition.parquet").exists():
            shutil.rmtree(run.folder)
            forget_folder(out)
            remove_folders(new)
        raise


@contextmanager
def locked(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a run's lock. The system releases it when the process ends, however it ends.

    Args:
        folder: the run's.
        patience_s: how long to wait for the lock. `run_status` holds it for an instant, which a
            process that wants to execute the run must outlast.

    Raises:
        UserError: another process holds the lock.
    """
    # Not per thread: a driver actor may be asked for the next event by another thread.
    lock = FileLock(folder / _LOCK, thread_local=False)
    try:
        lock.acquire(timeout=patience_s, poll_interval=0.02)
    except Timeout:
        raise UserError(f"another process is writing {folder}; wait for it, or stop it") from None
    except OSError as error:
        raise FileError(folder, f"cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
