"""Builds the folder that travels to a cluster with a job: source, configuration and files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from fedvsr import plugins
from fedvsr.config import ExperimentConfig
from fedvsr.environment import COMMIT_FILE, git_commit
from fedvsr.errors import UserError

# Ray's job server refuses a larger body (HTTP 413).
MAX_BYTES = 100 << 20
CONFIG = "run.yaml"
_NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


@dataclass(frozen=True)
class Package:
    """A folder that becomes a job's working directory."""

    folder: Path
    sizes: dict[str, int]
    """Bytes of each file or folder in it, by name."""

    def __str__(self) -> str:
        names = ", ".join(f"{name} {decimal(size)}" for name, size in self.sizes.items())
        return f"{names}: {decimal(sum(self.sizes.values()))} in all"


def build(
    folder: Path, config: ExperimentConfig | None, include: Sequence[Path], source: bool
) -> Package:
    """Make `folder` and fill it with what a job needs.

    Args:
        folder: becomes the job's working directory on every node; must not exist.
        config: written as `run.yaml`, with the files of its plug-ins; None for a job that runs no
            experiment.
        include: files and folders to ship too, each under the last part of its path.
        source: ship fedvsr's source; without it, the nodes must have fedvsr installed.

    Raises:
        UserError: a file is missing or named twice, a path of the configuration would be missing
            on the nodes, or the folder is larger than Ray takes.
    """
    names = [path.resolve().name for path in include]
    for path, name in zip(include, names, strict=True):
        if not path.exists():
            raise UserError(f"--include {path}: there is no such file or folder")
        if name in {"fedvsr", CONFIG, plugins.KEPT} or names.count(name) > 1:
            raise UserError(f"--include {path}: the job has another {name} already; rename it")
    if config is not None:
        _require_absolute(config, names)
    measured = {name: _bytes_of(path) for path, name in zip(include, names, strict=True)}
    if sum(measured.values()) > MAX_BYTES:
        raise UserError(too_large(measured))
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"--package {folder} exists already; name a new folder") from None
    if source:
        package = Path(__file__).resolve().parents[1]
        shutil.copytree(package, folder / "fedvsr", ignore=_NOT_SHIPPED)
        # The shipped source has no git history, but records must name its commit.
        if commit := git_commit():
            (folder / "fedvsr" / COMMIT_FILE).write_text(commit + "\n")
    if config is not None:
        (folder / CONFIG).write_text(config.kept_yaml())
        plugins.keep(config.plugins(), folder)
    for path, name in zip(include, names, strict=True):
        if path.is_dir():
            shutil.copytree(path, folder / name)
        else:
            shutil.copyfile(path, folder / name)
    sizes = {path.name: _bytes_of(path) for path in sorted(folder.iterdir())}
    if sum(sizes.values()) > MAX_BYTES:
        raise UserError(too_large(sizes))
    return Package(folder, sizes)


def too_large(sizes: dict[str, int]) -> str:
    """The error message for a package that Ray would refuse."""
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    names = ", ".join(f"{name} {decimal(size)}" for name, size in largest)
    return (
        f"the job's package has {decimal(sum(sizes.values()))}, and Ray takes "
        f"{decimal(MAX_BYTES)} (largest: {names}); put large files where every node reads them and "
        "give that path in the configuration"
    )


def _require_absolute(config: ExperimentConfig, included: Sequence[str]) -> None:
    for setting, paths in config.files().items():
        for path in paths:
            inside = Path(path).parts[0] in included
            if not (path.startswith(("/", "~", "package:")) or inside):
                raise UserError(
                    f"{setting}: {path} is relative, and a job runs in its own folder; give the "
                    f"absolute path on the cluster, or ship the file by --include {path}"
                )


def _bytes_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
