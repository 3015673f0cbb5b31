"""The search space of a sweep: the values that each swept setting may take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from fedvsr.errors import UserError
from fedvsr.section import Section, short
from fedvsr.tuning.expressions import tidy

Value = bool | int | float | str
"""Value of a swept setting, or the name of a case."""

MAX_TRIALS = 2_000
"""Trials of a sweep, and values of one setting."""
# Beyond it the distance of two bounds may be infinite.
_MAX_BOUND = 1e300
_KINDS = ("grid", "linspace", "uniform", "loguniform", "choice", "cases")


class Dimension(Section):
    """The values of one swept setting: exactly one of these keys."""

    grid: list[Value] | None = Field(None, min_length=1, description="Each of these values.")
    linspace: tuple[float, float, int] | None = Field(
        None, description="[from, to, how many]: evenly spaced values, both ends included."
    )
    uniform: tuple[float, float] | None = Field(
        None, description="[a, b]: drawn at random between a and b."
    )
    loguniform: tuple[float, float] | None = Field(
        None, description="[a, b]: drawn at random, with an evenly distributed logarithm."
    )
    choice: list[Value] | None = Field(
        None, min_length=1, description="Drawn at random from these."
    )
    cases: dict[str, dict[str, Any]] | None = Field(
        None,
        min_length=1,
        description="Each of these named groups of settings, which change together. The dimension "
        "may then have any name.",
    )

    @field_validator("grid", "choice", mode="before")
    @classmethod
    def _require_scalars(cls, values: Any) -> Any:
        for value in values if isinstance(values, list) else ():
            if not isinstance(value, Value):
                raise UserError(
                    f"{short(value)} is not a number, text or boolean; name lists and null by cases"
                )
        return values

    def model_post_init(self, _: object) -> None:
        """Check what concerns several fields at once."""
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise UserError(
                f"give one of {', '.join(_KINDS)}"
                + (f", not {len(kinds)} ({', '.join(kinds)})" if kinds else "")
            )
        if self.linspace and not 2 <= self.linspace[2] <= MAX_TRIALS:
            raise UserError(
                f"linspace needs at least 2 values and at most {MAX_TRIALS:,}: [from, to, how many]"
            )
        if self.linspace and self.linspace[0] == self.linspace[1]:
            raise UserError("linspace needs two different ends: [from, to, how many]")
        if twice := [value for value, count in Counter(self.grid or ()).items() if count > 1]:
            raise UserError(f"grid has {twice[0]} more than once")
        bounds = self.uniform or self.loguniform
        if any(abs(bound) > _MAX_BOUND for bound in (bounds or self.linspace or ())):
            raise UserError(f"{kinds[0]}: a bound is beyond {_MAX_BOUND:g}")
        if bounds and not bounds[0] < bounds[1]:
            raise UserError(f"{kinds[0]} = {list(bounds)}: the first bound must be the lower one")
        if self.loguniform and self.loguniform[0] <= 0:
            raise UserError("loguniform needs bounds above 0")

    @property
    def is_random(self) -> bool:
        """Whether a grid search draws its values at random instead of taking each."""
        return self.finite is None or self.choice is not None

    @property
    def finite(self) -> list[Value] | None:
        """All values, in the order of the file; None if there are infinitely many."""
        if self.linspace:
            first, last, count = self.linspace
            return [tidy(value) for value in np.linspace(first, last, count)]
        if self.cases:
            return list(self.cases)
        return self.grid or self.choice

    def draw(self, rng: np.random.Generator) -> Value:
        """A random value."""
        if self.uniform:
            return tidy(rng.uniform(*self.uniform))
        if self.loguniform:
            low, high = self.loguniform
            return tidy(math.exp(rng.uniform(math.log(low), math.log(high))))
        values = self.finite
        assert values is not None
        return values[int(rng.integers(len(values)))]

    def settings(self, key: str, value: Value) -> dict[str, object]:
        """The settings of a value, by dotted key; `key` is the dimension's name."""
        return flat(self.cases[str(value)]) if self.cases else {key: value}

    def keys(self, key: str) -> list[str]:
        """All dotted keys that the values set; `key` is the dimension's name."""
        return [k for value in self.cases or [""] for k in self.settings(key, value)]


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Settings by dotted key: `{"local": {"lr": 1}}` is `{"local.lr": 1}`; the last one wins."""
    result = dict[str, object]()
    for key, value in settings.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def nested(settings: Mapping[str, object]) -> dict[str, object]:
    """Flat settings as sections: `{"local.lr": 1}` is `{"local": {"lr": 1}}`."""
    result = dict[str, object]()
    for key, value in settings.items():
        *sections, last = key.split(".")
        inner = result
        for section in sections:
            deeper = inner.setdefault(section, {})
            if not isinstance(deeper, dict):
                raise UserError(f"{key} is part of {section}, which has a value of its own")
            inner = deeper
        inner[last] = value
    return result
