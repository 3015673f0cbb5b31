"""Pages of docs/reference that are written from the code, and the lists of `tests.docs.frozen`.

python -m tests.docs.references
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

import fedvsr
from fedvsr import models
from fedvsr.cli import app
from fedvsr.config import ExperimentConfig
from fedvsr.lookup import load, names
from fedvsr.tuning.config import SweepConfig
from tests.docs import frozen

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minItems": "{} or more",
    "pattern": "`{}`",
}
# The members of public classes that the page lists.
_MEMBERS = {
    "Run": ("id", "status", "table", "plot", "compare", "model", "upscale"),
    "ExperimentConfig": ("config_hash", "to_yaml"),
}
_TYPES = {"number": "number", "integer": "integer", "boolean": "true, false", "null": "null"}


def pages() -> dict[str, str]:
    """The text of each page, by its file's name."""
    return {
        "api.md": _api(),
        "cli.md": _cli(),
        "config.md": _config(),
        "sweep.md": _sweep(),
        "models.md": _models(),
    }


def _cli() -> str:
    command = typer.main.get_command(app)
    with command.make_context("fedvsr", ["presets"], resilient_parsing=True) as context:
        text = get_docs_for_click(obj=command, ctx=context, name="fedvsr", title="Commands")
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip() + "\n"


def _api() -> str:
    lines = [
        "# Python",
        "",
        "The public names of `import fedvsr`; [the how-to](../how-to/python.md) uses them. Other",
        "modules can be imported too, and may change from one version to the next.",
    ]
    for name in sorted({*fedvsr.__all__} - {"__version__"}, key=lambda n: (n.lower(), n)):
        value = getattr(fedvsr, name)
        lines += ["", f"## `{name}`", ""]
        if not inspect.isclass(value):
            lines += [*_signature(name, value), "", *_docstring(value)]
            continue
        lines += _docstring(value)
        if name in _MEMBERS:
            for key in _MEMBERS[name]:
                member = inspect.getattr_static(value, key)
                if isinstance(member, property):
                    lines += ["", f"**`.{key}`**: {inspect.getdoc(member)}"]
                else:
                    lines += ["", *_signature(f".{key}", member), "", *_docstring(member)]
    return "\n".join(lines) + "\n"


def _signature(name: str, function: Any) -> list[str]:
    """A function's signature as code, an argument per line if it has many."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    arguments = [_argument(parameter) for parameter in parameters]
    kinds = [parameter.kind for parameter in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        arguments.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returned = signature.return_annotation
    one = f"{name}({', '.join(arguments)}) -> {returned}"
    if len(one) <= 90:
        return ["```text", one, "```"]
    return ["```text", f"{name}(", *(f"    {a}," for a in arguments), f") -> {returned}", "```"]


def _argument(parameter: inspect.Parameter) -> str:
    star = "*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else ""
    text = f"{star}{parameter.name}: {parameter.annotation}"
    no_default = parameter.default is inspect.Parameter.empty
    return text if no_default else f"{text} = {parameter.default!r}"


def _docstring(value: Any) -> list[str]:
    """A docstring as Markdown: its sections as lists."""
    lines = list[str]()
    for line in (inspect.getdoc(value) or "").splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Yields):", line):
            lines += [f"**{line}**", ""]
        elif match := re.fullmatch(r" {4}(\*{0,2}\w+): (.*)", line):
            lines.append(f"- `{match[1]}`: {match[2]}")
        else:
            lines.append(f"  {line.strip()}" if line.startswith(" " * 8) else line.strip())
    return lines


def _config() -> str:
    schema = ExperimentConfig.model_json_schema()
    lines = [
        "# Configuration",
        "",
        "Every key of an experiment's file, and of `--set section.key=value`. They are printed,",
        "resolved, by `fedvsr config PRESET`. Where a file says nothing, a network's size fills in",
        "`local` and `evaluation` ([networks and recipes](recipes.md)).",
        "",
        *_table(schema, {"model", "algorithm"}),
    ]
    for key, value in schema["properties"].items():
        chosen = value.get("oneOf", [value])
        references = [one["$ref"] for one in chosen if "$ref" in one]
        for reference in references:
            section = _resolved(schema, reference)
            name = section["properties"].get("name", {}).get("const")
            title = f"`{key}`" if name is None else f"`{key}`, `name: {name}`"
            lines += ["", f"## {title}", "", section.get("description", "").split("\n\n")[0], ""]
            lines += _table(section)
            lines += _inner(schema, key, section)
    return "\n".join(lines) + "\n"


def _inner(schema: Mapping[str, Any], key: str, section: Mapping[str, Any]) -> Iterator[str]:
    """The sections that a section may hold."""
    for name, field in section["properties"].items():
        named = {f"{key}.{name}": field.get("anyOf", [])}
        named[f"{key}.{name}.NAME"] = list(field.get("patternProperties", {}).values())
        for title, chosen in named.items():
            for reference in (one["$ref"] for one in chosen if "$ref" in one):
                inner = _resolved(schema, reference)
                yield from ("", f"### `{title}`", "", inner["description"].split("\n\n")[0], "")
                yield from _table(inner)


def _sweep() -> str:
    schema = SweepConfig.model_json_schema()
    intro = "Every key of a sweep's file; [sweep settings](../how-to/sweeps.md) uses them."
    lines = ["# Sweep files", "", intro, "", *_table(schema)]
    titles = {
        "Dimension": "A setting in `space`",
        "SchedulerConfig": "`scheduler`",
        "SearcherConfig": "`searcher`",
        "EstimateConfig": "`estimate`",
        "LoggersConfig": "`loggers`",
    }
    for name, title in titles.items():
        section = schema["$defs"][name]
        lines += ["", f"## {title}", "", section["description"], ""]
        lines += _table(section)
    return "\n".join(lines) + "\n"


def _models() -> str:
    lines = [
        "# Networks",
        "",
        "Packaged sizes; [networks, sizes and recipes](recipes.md) tells how each is trained.",
        "Frames, height and width are those of the low-resolution input while training; inference",
        "pads and crops. The last column says whether MOON and FedSR can contrast its features.",
        "",
        "| `model.name` | `model.size` | parameters | scale | frames | height, width | contrast |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names("fedvsr.models"):
        module = load("fedvsr.models", name)
        for config in models.packaged(name):
            spec, network = module.spec(config), models.build_fresh(config)
            count = sum(parameter.numel() for parameter in network.parameters())
            frames = _at_least(spec.min_frames, spec.frames_multiple)
            size = _at_least(spec.min_size, spec.size_multiple)
            lines.append(
                f"| `{name}` | `{config.size}` | {count:,} | {spec.scale} | {frames} | {size} "
                f"| {'yes' if spec.features else 'no'} |"
            )
    return "\n".join(lines) + "\n"


def _at_least(least: int, multiple: int) -> str:
    return f"{least} or more" + (f", multiples of {multiple}" if multiple > 1 else "")


def _table(schema: Mapping[str, Any], without: Collection[str] = ()) -> Iterator[str]:
    yield "| key | values | default | |"
    yield "|---|---|---|---|"
    for key, field in schema["properties"].items():
        if key in without or "$ref" in field or "const" in field:
            continue
        default = _plain(field["default"]) if "default" in field else ""
        text = " ".join(field.get("description", "").split()).replace("|", r"\|")
        given = f"`{default}`" if default else ""
        yield f"| `{key}` | {_values(field)} | {given} | {text} |"


def _values(field: Mapping[str, Any]) -> str:
    """The type and bounds of a field in words."""
    if "anyOf" in field:
        return ", or ".join(_values(one) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "$ref" in field:
        return "section"
    kind = field.get("type", "")
    if kind == "array":
        items = field.get("items") or next(iter(field.get("prefixItems", [])), {})
        kind = f"list of {_values(items)}" if items else "list"
    elif kind == "object":
        kind = "mapping"
    bounds = [text.format(field[name]) for name, text in _BOUNDS.items() if name in field]
    return ", ".join([_TYPES.get(kind, kind), *bounds]).replace("|", r"\|")


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    return str(list(value) if isinstance(value, tuple) else value)


def _resolved(schema: Mapping[str, Any], reference: str) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"][reference.rpartition("/")[2]]
    return found


if __name__ == "__main__":
    for folder, texts in ((FOLDER, pages()), (frozen.FOLDER, frozen.lists())):
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
