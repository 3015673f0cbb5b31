"""The base of every configuration section: frozen, bounded, and strict about what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from fedvsr.lookup import did_you_mean


class Section(BaseModel):
    """A part of the configuration; it stands beside the code that it configures."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        # Before pydantic's own check: its message knows no suggestion.
        for key in values if isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                hint = did_you_mean(str(key), cls.model_fields)
                hint = hint or f" (there are: {', '.join(cls.model_fields)})"
                raise PydanticCustomError(
                    "unknown_setting", "{key} is not a setting{hint}", {"key": key, "hint": hint}
                )
        return values


class NamedSection(Section):
    """A section whose keys belong to one network or algorithm, the one that `name` names."""

    name: str
