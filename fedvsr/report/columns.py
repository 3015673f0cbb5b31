"""docs/reference/results.md, written from the schemas of `fedvsr.records`."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from fedvsr.records import SCHEMA_VERSION, SCHEMAS, SCORES

_ROWS = {
    "runs": "the run: status, settings, versions, last scores",
    "rounds": "a round; round 0 is the network before training",
    "clients": "a client's part in a round",
    "evaluations": "a test clip in an evaluated round; one per client where each has a network",
    "partition": "a clip that a client trains on",
    "faults": "a failure that the run met",
}
_INTRODUCTION = """\
# Result tables

Written by `fedvsr report --columns` from the schemas in `fedvsr/records.py`, version {version}.
A run writes one parquet file per table into `results/<run id>/`, each replaced whole. A round's
row is there when it is trained; its scores follow while the next round trains (`psnr_db`, `ssim`,
rows in `evaluations`). Every file carries these descriptions and units as field metadata, and
`schema_version` as its own. Older files are read with the columns that they lack as null.
[How to read them](../how-to/read-results.md) with pandas, DuckDB, Polars and Arrow; `fedvsr report`
makes tables, figures and a page of them.
"""
_SAME = """\
Columns that end in `_s` are wall seconds; these, `attempts`, `node`, `slot`, `device`, `versions`,
the times of `runs` and the table `faults` are all that may differ between two runs of one
configuration on one kind of machine.
"""
_KINDS = {"large_string": "string", "timestamp[us, tz=UTC]": "timestamp, UTC"}
# Columns that every table of a run begins with.
_SHARED = SCHEMAS["runs"].names[: SCHEMAS["runs"].names.index("name")]


def reference() -> str:
    """The reference page, Markdown."""
    lines = [
        _INTRODUCTION.format(version=SCHEMA_VERSION),
        "| file | a row is |",
        "|---|---|",
        *(f"| [`{name}.parquet`](#{name}) | {_ROWS[name]} |" for name in SCHEMAS),
        "",
        _SAME,
        "## Shared columns",
        "",
        "Every table begins with these.",
        "",
        *_table(SCHEMAS["runs"].field(name) for name in _SHARED),
    ]
    for name, schema in SCHEMAS.items():
        own = [field for field in schema if field.name not in _SHARED]
        lines += ["", f"## {name}", "", f"A row is {_ROWS[name]}.", "", *_table(own)]
    lines += [
        "",
        "## Scores of `fedvsr evaluate`",
        "",
        "`fedvsr evaluate --out FILE.parquet` writes a table of its own, a row per clip.",
        "",
        *_table(SCORES),
        "",
        "A sweep writes `trials.parquet`, a row per trial, joined to its runs' tables by `run_id`: "
        "[how to sweep](../how-to/sweeps.md).",
    ]
    return "\n".join(lines) + "\n"


def _table(fields: Iterable[pa.Field]) -> list[str]:
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for field in fields:
        metadata = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
        kind = _KINDS.get(str(field.type), str(field.type))
        unit, description = metadata.get("unit", ""), metadata.get("description", "")
        lines.append(f"| `{field.name}` | {kind} | {unit} | {description} |")
    return lines
