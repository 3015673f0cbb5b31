"""Settings as they are written: presets, YAML files that extend others, and overrides."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from fedvsr import plugins, yaml12
from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean
from fedvsr.section import short

NAMED = ("model", "algorithm")
"""Sections whose keys depend on their `name`, except for the shared ones."""
_SHARED = ("size",)
_MAX_EXTENDED = 20
# Characters of a dotted key; the longest one has 40.
_MAX_KEY = 200


def presets() -> dict[str, str]:
    """The packaged presets and their one-line descriptions."""
    return {name: str(extended(name)[0].get("description", "")) for name in _preset_names()}


def extended(source: str) -> tuple[dict[str, Any], set[str]]:
    """The settings of a preset or file, merged over those that it extends.

    Returns:
        The settings, and the dotted keys that the file itself sets; none for a preset.

    Raises:
        UserError: a file cannot be read, or extends itself.
    """
    chain, layers = [source], [_read(source)]
    while (base := layers[-1].pop("extends", None)) is not None:
        if not isinstance(base, str):
            raise UserError(f"{chain[-1]}: extends = {short(base)} is not a preset or a .yaml file")
        chain.append(_beside(chain[-1], base))
        if _same_file(chain[-1], chain[:-1]):
            raise UserError(f"{source} extends itself: {' -> '.join(chain)}; break the circle")
        if len(chain) > _MAX_EXTENDED:
            raise UserError(f"{source} extends {_MAX_EXTENDED} files in a row; join some of them")
        layers.append(_read(chain[-1]))
    explicit = set(keys(layers[0])) if _is_file(source) else set[str]()
    settings = layers.pop()
    for changes in reversed(layers):
        settings = merge(settings, changes)
    return settings, explicit


def parse_override(override: str) -> tuple[str, Any]:
    """The dotted key and the value of an override such as `local.lr=1e-3`.

    Raises:
        UserError: it has another form, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key or len(key) > _MAX_KEY:
        raise UserError(f"--set {short(override)} is not of the form section.key=value")
    return key, yaml12.load(text, f"--set {short(override, quoted=False)}")


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes over base, section by section.

    A change of network or algorithm drops the settings of the old one, except for the size.
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if not isinstance(old, Mapping) or not isinstance(value, Mapping):
            merged[key] = value
        elif key in NAMED and value.get("name", old.get("name")) != old.get("name"):
            merged[key] = {k: old[k] for k in _SHARED if k in old} | dict(value)
        else:
            merged[key] = merge(old, value)
    return merged


def nested(key: str, value: object) -> dict[str, Any]:
    """A dotted key and its value as nested settings."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def keys(settings: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The dotted keys of nested settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from keys(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def anchored(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings in which files of plug-ins, named relative to a folder, have absolute paths."""
    for key in NAMED:
        section = settings.get(key)
        name = section.get("name") if isinstance(section, Mapping) else None
        if isinstance(section, Mapping) and isinstance(name, str) and plugins.is_file(name):
            settings = {**settings, key: {**section, "name": plugins.beside(folder, name)}}
    return settings


def _beside(file: str, source: str) -> str:
    """What a file extends: a YAML file is searched beside it, wherever the command runs."""
    return os.path.join(os.path.dirname(file), source) if _is_file(source) else source


def _same_file(source: str, others: Iterable[str]) -> bool:
    """Whether a source is one of others, also by another name of the same file."""

    def place(name: str) -> str:
        return os.path.abspath(name) if _is_file(name) else name

    return place(source) in map(place, others)


def _is_file(source: str) -> bool:
    return Path(source).suffix in {".yaml", ".yml"}


def _read(source: str) -> dict[str, Any]:
    """The settings of a preset or file as they are written."""
    if _is_file(source):
        return anchored(yaml12.load_file(Path(source)), Path(source).parent)
    known = _preset_names()
    if source not in known:
        raise UserError(
            f"{short(source)} is neither a preset nor a .yaml file{did_you_mean(source, known)} "
            f"(presets: {', '.join(known)})"
        )
    with resources.as_file(resources.files("fedvsr.presets") / f"{source}.yaml") as path:
        return yaml12.load_file(path)


def _preset_names() -> list[str]:
    files = (Path(file.name) for file in resources.files("fedvsr.presets").iterdir())
    return sorted(file.stem for file in files if file.suffix == ".yaml")
