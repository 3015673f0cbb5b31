"""Lists of what users build on, kept in files so that a change of either shows as a difference.

The public names of `import fedvsr`, and the keys of experiment and sweep files.
`python -m tests.docs.references` (in `make references`) writes them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fedvsr
from fedvsr.config import ExperimentConfig
from fedvsr.tuning.config import SweepConfig

FOLDER = Path(__file__).parents[1] / "unit"


def lists() -> dict[str, str]:
    """The text of each list, by its file's name."""
    keys = [*_keys(ExperimentConfig), "", "# Sweep files", *_keys(SweepConfig)]
    return {
        "public_names.txt": "\n".join(_names()) + "\n",
        "configuration_keys.txt": "\n".join(["# Experiments", *keys]) + "\n",
    }


def _names() -> Iterator[str]:
    """Each public name; for functions the signature, for classes the members of our own."""
    for name in sorted(fedvsr.__all__):
        value = getattr(fedvsr, name)
        if not inspect.isclass(value):
            yield f"{name}{inspect.signature(value)}" if callable(value) else name
            continue
        yield f"class {name}"
        ours = [vars(base) for base in value.__mro__ if base.__module__.startswith("fedvsr")]
        members = {key for names in ours for key in names} | {*_fields(value)}
        for key in sorted(members):
            # Those with `model_` are pydantic's.
            if not key.startswith(("_", "model_")):
                member = inspect.getattr_static(value, key, None)
                yield f"    .{key}{inspect.signature(member) if inspect.isfunction(member) else ''}"


def _fields(value: Any) -> Iterable[str]:
    return getattr(value, "__dataclass_fields__", None) or getattr(value, "model_fields", ())


def _keys(model: Any) -> Iterator[str]:
    schema = model.model_json_schema()
    yield from _section(schema, schema, "")


def _section(schema: Mapping[str, Any], section: Mapping[str, Any], path: str) -> Iterator[str]:
    """`section.key = default` for each key, `section[name].key` where a name chooses the keys."""
    for key, field in section["properties"].items():
        if "const" in field:
            continue
        inner = [schema["$defs"][one] for one in _references(field)]
        inner = [one for one in inner if "properties" in one]
        if not inner or "anyOf" in field:
            default = json.dumps(field["default"]) if "default" in field else "(required)"
            yield f"{path}{key} = {default}"
        mapping = {"additionalProperties", "patternProperties"} & field.keys()
        several = ".*." if mapping else "."
        for one in inner:
            name = one["properties"].get("name", {}).get("const")
            yield from _section(schema, one, f"{path}{key}{f'[{name}]' if name else ''}{several}")


def _references(field: Any) -> Iterator[str]:
    """The definitions that a field's schema names, in order."""
    if isinstance(field, list):
        for one in field:
            yield from _references(one)
    elif isinstance(field, dict):
        for key, value in field.items():
            if key == "$ref":
                yield value.rpartition("/")[2]
            elif key not in ("default", "discriminator"):
                yield from _references(value)
