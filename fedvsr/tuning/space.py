"""The search space of a sweep: for each swept setting, the values that it may take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from fedvsr.errors import UserError
from fedvsr.section import Section
from fedvsr.tuning.expressions import tidy

Value = bool | int | float | str
"""Of a swept setting, or the name of a case."""

_KINDS = ("grid", "linspace", "uniform", "loguniform", "choice", "cases")


class Dimension(Section):
    """The values of one swept setting; exactly one key is given."""

    grid: list[Value] | None = Field(None, min_length=1, description="Each of these.")
    linspace: tuple[float, float, int] | None = Field(
        None, description="From, to (both taken), and how many, evenly spaced."
    )
    uniform: tuple[float, float] | None = Field(None, description="Drawn between these.")
    loguniform: tuple[float, float] | None = Field(
        None, description="Drawn between these, its logarithm evenly."
    )
    choice: list[Value] | None = Field(None, min_length=1, description="Drawn from these.")
    cases: dict[str, dict[str, Any]] | None = Field(
        None,
        min_length=1,
        description="Each of these, by name: several settings that change together. The name of "
        "the dimension is then free.",
    )

    @field_validator("grid", "choice", mode="before")
    @classmethod
    def _read_numbers(cls, values: Any) -> Any:
        """YAML reads 1e-3 as text; it wants 1.0e-3."""
        return [_number(v) for v in values] if isinstance(values, list) else values

    def model_post_init(self, _: object) -> None:
        """Check what one field alone cannot show."""
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise UserError(
                f"give one of {', '.join(_KINDS)}"
                + (f", not {len(given)} ({', '.join(given)})" if given else "")
            )
        if self.linspace and self.linspace[2] < 2:
            raise UserError("linspace needs at least 2 values: [from, to, how many]")
        bounds = self.uniform or self.loguniform
        if bounds and not bounds[0] < bounds[1]:
            raise UserError(f"{given[0]} = {list(bounds)}: the first bound must be the lower one")
        if self.loguniform and self.loguniform[0] <= 0:
            raise UserError("loguniform needs bounds above 0")

    @property
    def is_random(self) -> bool:
        """Whether a grid search draws its values instead of going through them."""
        return self.finite is None or self.choice is not None

    @property
    def finite(self) -> list[Value] | None:
        """All values, in the order of the file; None where there are infinitely many."""
        if self.linspace:
            first, last, count = self.linspace
            return [tidy(value) for value in np.linspace(first, last, count)]
        if self.cases:
            return list(self.cases)
        return self.grid or self.choice

    def draw(self, rng: np.random.Generator) -> Value:
        """One value at random."""
        if self.uniform:
            return tidy(rng.uniform(*self.uniform))
        if self.loguniform:
            low, high = self.loguniform
            return tidy(math.exp(rng.uniform(math.log(low), math.log(high))))
        values = self.finite
        assert values is not None
        return values[int(rng.integers(len(values)))]

    def settings(self, key: str, value: Value) -> dict[str, Any]:
        """What a value sets, by dotted key. `key` is the dimension's name."""
        return flat(self.cases[str(value)]) if self.cases else {key: value}

    def keys(self, key: str) -> list[str]:
        """All dotted keys that its values set."""
        return [k for value in self.cases or [""] for k in self.settings(key, value)]


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key: `{"local": {"lr": 1}}` is `{"local.lr": 1}`; later ones stand."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings as sections: `{"local.lr": 1}` is `{"local": {"lr": 1}}`."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"{key} is set within {section}, which is set too")
        inner[last] = value
    return result
