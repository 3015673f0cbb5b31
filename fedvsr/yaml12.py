"""YAML 1.2 as the program reads and writes it: settings, sweeps, and the values of `--set`.

PyYAML reads YAML 1.1, in which `010` is 8, `1:30` is 90 and `2020-13-45` is an error. Here a number
is a number only as in YAML 1.2, except that one with a leading zero stays text: `010` may be a
clip's id. Booleans are `true` and `false`; there are no dates and no tags.
"""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from fedvsr.errors import FileError, UserError

_MAX_BYTES = 1 << 20
# Largest size of a document once each alias is written out.
_MAX_CHARACTERS = 4 << 20
_MAX_DEPTH = 40
_MAX_DIGITS = 40
_MAX_KEY = 200

_TAG = "tag:yaml.org,2002:"
_STR, _INT, _MERGE = f"{_TAG}str", f"{_TAG}int", f"{_TAG}merge"
# Tag, pattern, and the characters that a value of it begins with.
_PLAIN = (
    (f"{_TAG}null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (f"{_TAG}bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    (_INT, r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    (
        f"{_TAG}float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    (_MERGE, r"<<", ["<"]),
)


def load(text: str, where: str) -> object:
    """The value that a YAML document holds; None if it is empty.

    Args:
        text: the document.
        where: what the message of an error begins with, such as a file's name.

    Raises:
        UserError: it is not YAML, gives a key twice, or is far larger than settings are.
    """
    try:
        value: object = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # What --set gives is one line.
        where += f" line {mark.line + 1}" if mark and "\n" in text.strip() else ""
        problem = " ".join((error.problem or error.context or "").split())
        if isinstance(error, _RefusedError):
            raise UserError(f"{where}: {problem}") from None
        raise UserError(f"{where} is not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        character = chr(getattr(error, "character", 0))
        raise UserError(
            f"{where} is not valid YAML: it holds the character {character!r}"
        ) from None
    return value


def load_file(path: Path) -> dict[str, object]:
    """The settings of a YAML file.

    Raises:
        UserError: it cannot be read, is not UTF-8, or `load` refuses it; or it holds no settings.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        # ValueError: the name holds a null character.
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(path, f"cannot be read: {reason}") from None
    if len(data) > _MAX_BYTES:
        raise FileError(path, f"is larger than {_MAX_BYTES >> 20} MiB, so it holds no settings")
    try:
        # A byte order mark, as some editors write it, is left out.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileError(path, f"line {line} is not UTF-8; save the file as UTF-8") from None
    settings = copy.deepcopy(_once(text, str(path)))
    if not isinstance(settings, dict):
        raise FileError(path, "holds no settings")
    return settings


@lru_cache(maxsize=16)
def _once(text: str, where: str) -> object:
    """`load`, once for the file that each trial of a sweep begins with."""
    return load(text, where)


def dump(value: object, *, flow: bool = False) -> str:
    """A value as YAML that `load` reads back; on one line if `flow` is set."""
    width = 10**6 if flow else 100
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, width=width, default_flow_style=flow
    )
    return text


class _RefusedError(yaml.MarkedYAMLError):
    """YAML that is well formed and refused all the same; `problem` says why."""

    def __init__(self, at: yaml.Node | yaml.Event, problem: str) -> None:
        super().__init__(problem=problem)
        mark: Any = at.start_mark
        self.problem_mark = mark


class _Loader(yaml.SafeLoader):
    """Bounds what a document may hold before any of it becomes a value."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        # By node: characters and levels, with each alias written out.
        self._sizes = dict[yaml.Node, tuple[int, int]]()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag not in (None, _STR):
            name = f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag
            raise _RefusedError(event, f"the tag {name} is not supported; leave it out")
        self._depth += 1
        self._require(event, levels=1)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _RefusedError(event, f"*{event.anchor} holds itself")
        else:
            self._sizes[node] = self._size(node)
        self._require(event, *self._sizes[node])
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _MAX_DIGITS:
            raise _RefusedError(node, f"a number has more than {_MAX_DIGITS} digits")
        return int(super().construct_yaml_int(node))

    def _require(self, at: yaml.Event, characters: int = 0, levels: int = 0) -> None:
        if self._depth + levels > _MAX_DEPTH:
            raise _RefusedError(at, f"more than {_MAX_DEPTH} lists and sections in one another")
        if characters > _MAX_CHARACTERS:
            raise _RefusedError(at, "its aliases stand for millions of characters; write less")

    def _size(self, node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.MappingNode):
            _require_keys(node)
            inside = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        elif "\0" in node.value:
            raise _RefusedError(node, "text holds a null character")
        else:
            return 1 + len(node.value), 1
        sizes = [self._sizes[part] for part in inside]
        return 1 + sum(size for size, _ in sizes), 1 + max((deep for _, deep in sizes), default=0)


def _require_keys(node: yaml.MappingNode) -> None:
    """Raise unless each key is text, on one line, and given once."""
    seen = set[str]()
    for key, _ in node.value:
        text = key.value if isinstance(key, yaml.ScalarNode) else "[...]"
        if key.tag not in (_STR, _MERGE):
            raise _RefusedError(key, f"the key {text!r} is not text; write it in quotes")
        if len(text) > _MAX_KEY or len(text.splitlines()) > 1:
            raise _RefusedError(key, "a key has several lines, or is very long")
        if text in seen:
            raise _RefusedError(key, f"{text} is given twice; leave one of them out")
        seen.add(text)


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes if YAML 1.1 or 1.2 would read it as another type."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _PLAIN:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)
