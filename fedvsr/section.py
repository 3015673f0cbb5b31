"""The base of every configuration section: frozen, bounded, and strict about its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedvsr import plugins
from fedvsr.lookup import did_you_mean

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
"""What names a folder: neither hidden, nor `..`, nor like an option."""
# Characters of a value in a message.
_SHOWN = 80


class OnlyWith:
    """Marks a field that has an effect only if another field of its section has certain values.

    `Annotated[float, OnlyWith("weights", "loss_aware")]`: one of these values;
    `OnlyWith("mu", above=0)`: a number above a bound; `OnlyWith("videos")`: neither null nor empty.
    """

    def __init__(self, field: str, *values: object, above: float | None = None) -> None:
        self.field, self.values, self.above = field, values, above

    def holds(self, value: Any) -> bool:
        """Whether the marked field has an effect if the other one is `value`."""
        if self.above is not None:
            return bool(value > self.above)
        return value in self.values if self.values else bool(value)

    def __str__(self) -> str:
        if self.above is not None:
            return f"{self.field} above {self.above:g}"
        values = " or ".join(map(show, self.values))
        return f"{self.field} = {values}" if values else f"{self.field} set"


class Former:
    """Marks a field that has no effect any more and is there to read older configurations.

    `Annotated[bool, Former("luma is always scored too")]`: why.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Unused(NamedTuple):
    """A setting that differs from its default and has no effect."""

    key: str
    """Dotted, e.g. `algorithm.alpha`."""
    default: object
    reason: str
    """A refusal in one line."""


class Section(BaseModel):
    """A part of the configuration, defined beside the code that it configures."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    ignored: ClassVar[tuple[str, ...]] = ()
    """Inherited settings that have no effect in this section."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_mistakes(cls, values: Any) -> Any:
        """Refuse what pydantic explains badly, unknown settings, or accepts: `lr: true` as 1."""
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                hint = did_you_mean(str(key), cls.model_fields)
                hint = hint or f" (there are: {', '.join(cls.model_fields)})"
                raise PydanticCustomError(
                    "unknown_setting",
                    "{key} is not a setting{hint}",
                    {"key": short(key, quoted=False) or "''", "hint": hint},
                )
            kinds = _kinds(cls.model_fields[key].annotation)
            if kinds & {int, float} and not kinds & {bool, Any} and _has_bool(value):
                raise PydanticCustomError(
                    "not_a_number",
                    "{key} = {value}: true and false are not numbers",
                    {"key": key, "value": show(value)},
                )
        return values

    def without_effect(self, path: str = "") -> list[Unused]:
        """Settings that differ from their defaults and have no effect, nested sections included.

        `path`, e.g. `algorithm.`, precedes their names.
        """
        unused = list[Unused]()
        # A value without effect cannot give an effect to another.
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name, field in type(self).model_fields.items():
            default = field.get_default(call_default_factory=True)
            if isinstance(values[name], Section):
                unused += values[name].without_effect(f"{path}{name}.")
            elif values[name] != default and (reason := self._why_unused(name, values, path)):
                text = f"{path}{name} = {show(values[name])} has no effect: {reason}; leave it out"
                unused.append(Unused(path + name, default, text))
                values[name] = default
        return unused

    def _why_unused(self, name: str, values: Mapping[str, object], path: str) -> str | None:
        if name in self.ignored:
            return f"{path}name = {values['name']} does not use it"
        for mark in type(self).model_fields[name].metadata:
            if isinstance(mark, Former):
                return mark.reason
            if isinstance(mark, OnlyWith) and not mark.holds(other := values[mark.field]):
                return f"{path}{mark.field} = {show(other)} ({name} counts only with {mark})"
        return None


class NamedSection(Section):
    """The section of one network or algorithm, which `name` chooses."""

    plugin: ClassVar[plugins.Plugin | None] = None
    """The plug-in that defines this section; None for those that travel with fedvsr."""

    name: str

    @model_serializer(mode="wrap")
    def _with_digest(self, settings_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The settings; those of a plug-in with its SHA-256, which decides numbers as they do."""
        settings: dict[str, Any] = settings_of(self)
        return settings | ({plugins.SHA256: self.plugin.sha256} if self.plugin else {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle with the source of the plug-in, which other processes lack."""
        if self.plugin is None:
            return super().__reduce_ex__(protocol)
        return plugins.blank, (self.plugin,), self.__getstate__()


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, such as int and None for `int | None`."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))


def _has_bool(value: object) -> bool:
    return isinstance(value, bool) or (
        isinstance(value, list | tuple) and any(map(_has_bool, value))
    )


def short(value: object, *, quoted: bool = True) -> str:
    """A value from outside as part of a message: on one line, and cut if it is long."""
    text = repr(value) if quoted else " ".join(str(value).splitlines())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def show(value: object) -> str:
    """A setting's value as YAML on one line."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(show, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
