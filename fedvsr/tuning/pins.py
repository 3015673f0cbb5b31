"""The files of plug-ins that a sweep names: every trial uses them as they were when it began."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from fedvsr import plugins
from fedvsr.errors import UserError
from fedvsr.section import Section
from fedvsr.settings import extended

_NAMES = {"algorithm.name": "algorithm", "model.name": "model"}


class Pin(Section):
    """The file of a plug-in, and what it must hold."""

    file: str = Field(description="Path of the file; in a sweep's folder, relative to it.")
    sha256: str = Field(description="SHA-256 of the file.")


class Pins:
    """Collects the files that settings name; the settings then hold only the files' names."""

    def __init__(self) -> None:
        self.pins = dict[str, Pin]()
        """Pins by kind and file, such as `algorithm/fedexp.py`."""

    def settings(self, value: Any, folder: Path, key: str = "") -> Any:
        """Settings, or the values of one, without the folders of plug-ins' files.

        Args:
            value: the settings, with nested or dotted keys.
            folder: the folder that files are named relative to.
            key: dotted key of `value`.

        Raises:
            UserError: a file cannot be read, or two files have one name.
        """
        if isinstance(value, Mapping):
            return {k: self.settings(v, folder, _joined(key, str(k))) for k, v in value.items()}
        if isinstance(value, list):
            return [self.settings(one, folder, key) for one in value]
        kind = next((kind for end, kind in _NAMES.items() if f".{key}".endswith(f".{end}")), None)
        if kind is None or not plugins.is_file(value):
            return value
        self._add(kind, Path(plugins.beside(folder, value)))
        return Path(value).name

    def bases(self, bases: Iterable[Any]) -> None:
        """Add the files that the sweep's bases name.

        Raises:
            UserError: see `settings`.
        """
        for base in bases:
            try:
                settings = extended(base)[0] if isinstance(base, str) else {}
            except UserError:
                # The sweep's first trial reports it.
                continue
            self.settings(settings, Path())

    def _add(self, kind: str, path: Path) -> None:
        name = f"{kind}/{path.name}"
        pin = Pin(file=str(path), sha256=plugins.read(kind, path).sha256)
        if self.pins.setdefault(name, pin) != pin:
            raise UserError(
                f"{kind}.name: {self.pins[name].file} and {path} have one name, by which a sweep "
                "tells them apart; rename one"
            )


def _joined(key: str, inner: str) -> str:
    # The kinds of a dimension stand between a setting and its values.
    return key if inner in ("grid", "choice", "cases") else f"{key}.{inner}"


def keep(pins: Mapping[str, Pin], folder: Path) -> dict[str, Pin]:
    """Copy the files into a sweep's folder, and return pins of the copies, relative to it.

    Raises:
        UserError: a file has changed since it was pinned.
    """
    kept = dict[str, Pin]()
    for name, pin in pins.items():
        plugin = plugins.read(name.partition("/")[0], Path(pin.file))
        if plugin.sha256 != pin.sha256:
            raise UserError(f"{pin.file} was changed meanwhile; give the command again")
        plugins.keep([plugin], folder)
        kept[name] = Pin(file=plugin.file, sha256=pin.sha256)
    return kept


def require_same(before: Mapping[str, Pin], now: Mapping[str, Pin], sweep: Path) -> None:
    """Check that a sweep is resumed with the files that it was started with.

    Raises:
        UserError: one has changed.
    """
    for name in before.keys() & now.keys():
        if before[name].sha256 != now[name].sha256:
            then, digest = plugins.shown(before[name].sha256), plugins.shown(now[name].sha256)
            raise UserError(
                f"{now[name].file} has changed since the sweep {sweep} was started (SHA-256 "
                f"{digest}, then {then}): restore it from {before[name].file}, or start a new "
                "sweep by --name"
            )
