"""The first error of a validation, as one line that names the setting and what to do."""

from __future__ import annotations

import re
from collections.abc import Sized
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fedvsr import algorithms, models
from fedvsr.lookup import did_you_mean, names
from fedvsr.section import NAME, short
from fedvsr.settings import NAMED

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_KINDS = {kind.name: kind for kind in (models.KIND, algorithms.KIND)}
_TYPE = re.compile(r"(constrained-)?(bool|int|float|str)|.*\[.*\]")


def explain(error: ValidationError, has_overrides: bool = True) -> str:
    """The first error of a validation, as one line that names the setting and what to do.

    Args:
        error: the validation's error.
        has_overrides: whether `--set` can give these settings.
    """
    errors = error.errors()
    first, path = errors[0], _path(errors[0])
    message = first["msg"]
    if first["type"] in ("unknown_setting", "not_a_number"):
        text = f"{path}.{message}" if path else message
    elif first["type"] == "union_tag_invalid":
        tag, known = short(first["ctx"]["tag"], quoted=False), _KINDS[path].known()
        text = (
            f"{path}.name = {tag} is not one of the {path}s{did_you_mean(tag, known)} "
            f"(there are: {', '.join(known)})"
        )
    elif first["type"] == "union_tag_not_found":
        text = f"{path}.name is missing (there are: {', '.join(_KINDS[path].known())})"
    elif first["type"] == "missing":
        text = f"{path} is missing: give it in the file"
        text += f", or by --set {path}=..." if has_overrides else ""
    elif first["type"] == "value_error":
        message = message.removeprefix("Value error, ")
        text = message if message.startswith(path) or not path else f"{path}: {message}"
    else:
        # A field of several types has an error for each.
        reasons = dict.fromkeys(_reason(error) for error in errors if _path(error) == path)
        text = f"{path} = {short(first['input'])}: {' or '.join(reasons)}"
    return text + and_more({_path(error): error for error in errors})


def _path(error: ErrorDetails) -> str:
    """The dotted key of the setting that an error is about."""
    loc = [str(part) for part in error["loc"]]
    if len(loc) > 1 and loc[0] in NAMED and loc[1] in names(f"fedvsr.{loc[0]}s"):
        # pydantic puts the chosen name between a section and its key.
        del loc[1]
    # For a field with several types, it adds the type that did not fit.
    return ".".join(part for part in loc if not _TYPE.fullmatch(part))


def _reason(error: ErrorDetails) -> str:
    """What is wrong with a value."""
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == NAME:
        return "give letters, digits, _, . and -, the first of them a letter, a digit or _"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "give settings in it, as {key: value}"
    message = error["msg"]
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        message += "; write it in quotes"
    return f"{message[:1].lower()}{message[1:]}"


def and_more(errors: Sized) -> str:
    """How many errors a line leaves out."""
    return f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
