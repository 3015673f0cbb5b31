"""Algorithms, networks and data sources of one's own: a file, a module, or an entry point.

A plug-in is code that the user runs. Its file is read once: what is executed, hashed and kept in a
run's folder, and what travels to other processes, are the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from fedvsr.errors import FileError, UserError, skipping
from fedvsr.files import replacing
from fedvsr.lookup import load, names

KEPT = "plugins"
"""Folder of the files of plug-ins, inside a run's or a sweep's folder."""
SHA256 = "sha256"
"""Key of a section that names a plug-in: the SHA-256 that the plug-in must have."""
_SUFFIX = ".py"
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Kind:
    """What plug-ins of a kind must have."""

    name: str
    """Section of the configuration that names one, such as `algorithm`."""
    package: str
    """Package of those that travel with fedvsr."""
    group: str
    """Group of entry points."""
    classes: Mapping[str, type]
    """Classes that a plug-in must have, and what they inherit from."""
    functions: tuple[str, ...] = ()
    """Functions that it must have."""
    in_network: tuple[str, ...] = ()
    """Classes that it must have, which a package may have in a submodule `network`."""

    def known(self) -> list[str]:
        """Names of the packaged ones and of entry points, sorted."""
        return sorted({*names(self.package), *(entry.name for entry in self.entry_points())})

    def entry_points(self) -> list[EntryPoint]:
        """Entry points of installed packages whose names are not those of packaged ones."""
        packaged = names(self.package)
        found = (entry for entry in entry_points(group=self.group) if entry.name not in packaged)
        return sorted(found, key=lambda entry: entry.name)

    def modules(self) -> dict[str, ModuleType]:
        """The packaged ones and those of entry points, by name; broken ones are named and left out.

        The names of entry points are followed by `(plug-in)`.
        """
        modules = {name: load(self.package, name) for name in names(self.package)}
        for entry in self.entry_points():
            with skipping(Path(f"the entry point {entry.name} ({entry.value})")):
                plugin = find(self, {"name": entry.name})
                assert plugin is not None
                modules[f"{entry.name} (plug-in)"] = plugin.module()
        return modules


@dataclass(frozen=True)
class Plugin:
    """A plug-in that this process has loaded, or can load. Pickling it takes its source along."""

    kind: str
    name: str
    """Its name in tables: the file's, module's or entry point's, without folder and package."""
    reference: str
    """What names it in a configuration: the file's absolute path, or a name."""
    sha256: str
    """SHA-256 of its file, or of all files of a package."""
    module_name: str = ""
    """The module, which must be installed where it is used; empty for a file."""
    source: bytes | None = field(default=None, repr=False)
    """Content of the file; None for an installed module."""

    @property
    def file(self) -> str:
        """Path of the kept copy of its file, inside a run's folder."""
        return f"{KEPT}/{self.kind}/{self.name}{_SUFFIX}"

    @property
    def kept_reference(self) -> str:
        """What names it in a run's own configuration."""
        return self.reference if self.source is None else self.file

    def module(self) -> ModuleType:
        """Its module, imported at the first call in a process.

        Raises:
            UserError: it cannot be imported; or an installed one is missing here, or differs.
        """
        if self.source is not None:
            return _executed(self)
        module = _imported(self.kind, self.module_name)
        if (sha256 := _digest(module)) != self.sha256:
            raise UserError(
                f"{setting(self.kind)} = {self.reference}: the module {self.module_name} differs "
                f"on {socket.gethostname()} (SHA-256 {shown(sha256)}, not {shown(self.sha256)}); "
                "install the same version there"
            )
        return module


def setting(kind: str) -> str:
    """What names a plug-in of a kind, for messages."""
    return "data source" if kind == "source" else f"{kind}.name"


# By kind, name and SHA-256: a configuration that records these needs no file in this process.
_loaded = dict[tuple[str, str, str], Plugin]()


def shown(sha256: str) -> str:
    """The start of a SHA-256, for messages."""
    return f"{sha256[:_SHOWN_DIGITS]}..."


def is_file(name: object) -> bool:
    """Whether a name is the path of a plug-in's file."""
    return isinstance(name, str) and name.endswith(_SUFFIX)


def beside(folder: Path, name: str) -> str:
    """The absolute path of a file that is named relative to a folder; other names as they are."""
    return os.path.abspath(folder / Path(name).expanduser()) if is_file(name) else name


def stem(name: str) -> str:
    """The name in tables of what a configuration names."""
    return Path(name).stem if is_file(name) else name.rpartition(".")[2]


def find(kind: Kind, settings: Mapping[str, Any], execute: bool = True) -> Plugin | None:
    """The plug-in that a section names, loaded; None if it names a packaged one, or nothing known.

    Args:
        kind: of plug-in.
        settings: the section.
        execute: whether a plug-in may be executed that this process has not loaded yet. Settings
            that anybody may have written must not choose what is executed.

    Raises:
        UserError: it cannot be loaded, lacks what its kind must have, or has another SHA-256 than
            the section records.
    """
    name, sha256 = settings.get("name"), settings.get(SHA256)
    if not isinstance(name, str) or name in names(kind.package):
        return None
    if known := find_loaded(kind, settings):
        return known
    plugin = _named(kind, name) if execute else None
    if plugin is None:
        if execute and sha256 is None:
            return None
        raise UserError(
            f"{setting(kind.name)} = {name} is of a plug-in, which is not loaded here; name its "
            "file or module"
        )
    if sha256 is not None and sha256 != plugin.sha256:
        raise UserError(
            f"{setting(kind.name)} = {plugin.reference}: it has changed since (SHA-256 "
            f"{shown(plugin.sha256)}, recorded was {shown(str(sha256))}); restore it, or leave "
            f"{kind.name}.{SHA256} out to use it as it is"
        )
    _require(kind, plugin)
    mark(plugin)
    return plugin


def find_loaded(kind: Kind, settings: Mapping[str, Any]) -> Plugin | None:
    """The plug-in of a section that records its SHA-256, if this process has loaded it already."""
    return _loaded.get((kind.name, stem(str(settings.get("name"))), str(settings.get(SHA256))))


def section_class(kind: Kind, name: str) -> Any:
    """The `Config` of a packaged one or of a plug-in; None if nothing has the name.

    Raises:
        UserError: see `find`.
    """
    if name in names(kind.package):
        return load(kind.package, name).Config
    plugin = find(kind, {"name": name})
    return plugin and plugin.module().Config


def mark(plugin: Plugin) -> Any:
    """Note at the plug-in's `Config`, if it has one, that the plug-in defines it; return it."""
    config = getattr(plugin.module(), "Config", None)
    if config is not None:
        config.plugin = plugin
    _loaded[plugin.kind, plugin.name, plugin.sha256] = plugin
    return config


def blank(plugin: Plugin) -> Any:
    """A section without values, which unpickling fills in."""
    config = mark(plugin)
    return config.__new__(config)


def module_of(kind: Kind, section: Any) -> ModuleType:
    """The module of the packaged one, or of the plug-in, that a section configures."""
    plugin: Plugin | None = section.plugin
    return load(kind.package, section.name) if plugin is None else plugin.module()


def keep(plugins: Iterable[Plugin], folder: Path) -> None:
    """Write the files of plug-ins below a folder, as `Plugin.file` says."""
    for plugin in plugins:
        path = folder / plugin.file
        if plugin.source is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside:
                aside.write_bytes(plugin.source)


def are_of(settings: Mapping[str, Any], plugins: Iterable[Plugin]) -> bool:
    """Whether the sections of a configuration are of exactly these plug-ins."""
    recorded = {
        key: section[SHA256]
        for key, section in settings.items()
        if isinstance(section, Mapping) and SHA256 in section
    }
    return recorded == {plugin.kind: plugin.sha256 for plugin in plugins}


def read(kind: str, path: Path) -> Plugin:
    """The plug-in of a file, which is not executed.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{setting(kind)}: there is no file {path}; correct the path") from None
    except OSError as error:
        raise UserError(f"{setting(kind)}: cannot read {path}: {error.strerror}") from None
    sha256 = hashlib.sha256(source).hexdigest()
    return Plugin(kind, path.stem, str(path), sha256, source=source)


def _named(kind: Kind, name: str) -> Plugin | None:
    if is_file(name):
        return read(kind.name, Path(beside(Path.cwd(), name)))
    module_name = name if _DOTTED.fullmatch(name) else ""
    for entry in () if module_name else kind.entry_points():
        if entry.name == name:
            if entry.attr:
                raise UserError(
                    f"{setting(kind.name)} = {name}: the entry point {entry.value} must be a module"
                )
            module_name = entry.module
    if not module_name:
        return None
    sha256 = _digest(_imported(kind.name, module_name))
    return Plugin(kind.name, stem(name), name, sha256, module_name)


def _require(kind: Kind, plugin: Plugin) -> None:
    """Check that a plug-in has what its kind must have."""
    module, where = plugin.module(), f"{setting(kind.name)} = {plugin.reference}"
    if plugin.name in names(kind.package):
        raise UserError(f"{where} has the name of a packaged {kind.name}; rename it")
    for name, base in kind.classes.items():
        found = getattr(module, name, None)
        if found is None:
            raise UserError(f"{where} has no class {name}; give it one ({_start(kind)})")
        if not (isinstance(found, type) and issubclass(found, base)):
            raise UserError(
                f"{where}: {name} must inherit from {base.__name__} of {base.__module__}"
            )
    for name in kind.functions:
        if not callable(getattr(module, name, None)):
            raise UserError(f"{where} has no {name}; give it one ({_start(kind)})")
    inside = f"{module.__name__}.network"
    has_network = hasattr(module, "__path__") and importlib.util.find_spec(inside) is not None
    for name in kind.in_network:
        if not hasattr(module, name) and not has_network:
            raise UserError(f"{where} has no class {name}; give it one ({_start(kind)})")
    if "Config" in kind.classes:
        own = module.Config.model_fields["name"].default
        if own != plugin.name:
            raise UserError(
                f"{where}: Config.name is {own!r} by default, and must be {plugin.name!r}, the "
                "name of the file, module or entry point"
            )


def _start(kind: Kind) -> str:
    if kind.name == "source":
        return "the page on preparing data shows a whole one"
    return "`fedvsr new` writes a whole one"


def _executed(plugin: Plugin) -> ModuleType:
    """The module of a file's source, executed at the first call."""
    name = f"fedvsr_plugin_{plugin.kind}_{plugin.name}_{plugin.sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _Loader(plugin)
    spec = importlib.util.spec_from_loader(name, loader, origin=plugin.reference)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = plugin.reference
    # Before it is executed: classes look their own module up.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        # A plug-in may raise anything.
        del sys.modules[name]
        raise _refusal(plugin.kind, plugin.reference, error, plugin.reference) from error
    return module


class _Loader(importlib.abc.InspectLoader):
    """Executes the source in memory, and gives its lines to tracebacks and `inspect`."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._plugin.source or b"")

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self._plugin.source or b"", self._plugin.reference)


def _imported(kind: str, name: str) -> ModuleType:
    """An installed module.

    Raises:
        UserError: it is missing, or fails.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{setting(kind)} = {name}: Python finds no module {error.name} on "
                f"{socket.gethostname()}; install it there, or put its folder into PYTHONPATH"
            ) from None
        raise _refusal(kind, name, error, "") from error
    except (Exception, SystemExit) as error:
        # A plug-in may raise anything.
        raise _refusal(kind, name, error, "") from error


def _refusal(kind: str, reference: str, error: BaseException, filename: str) -> UserError:
    """What a plug-in that cannot be imported tells its user."""
    where, reason = f"{setting(kind)} = {reference}", f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return UserError(f"{where}: line {error.lineno} is not Python: {error.msg}")
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == filename]
    if isinstance(error, ImportError) and filename:
        reason += " (a plug-in is one file, or an installed package)"
    return UserError(f"{where}: line {lines[-1]}: {reason}" if lines else f"{where}: {reason}")


def _digest(module: ModuleType) -> str:
    """SHA-256 of a module's file; of a package, of the names and contents of all its files."""
    path = Path(str(module.__file__))
    try:
        if not hasattr(module, "__path__"):
            return hashlib.sha256(path.read_bytes()).hexdigest()
        sha256 = hashlib.sha256()
        for inside in sorted(path.parent.rglob(f"*{_SUFFIX}")):
            digest = hashlib.sha256(inside.read_bytes()).hexdigest()
            sha256.update(f"{inside.relative_to(path.parent)} {digest}\n".encode())
        return sha256.hexdigest()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from None
