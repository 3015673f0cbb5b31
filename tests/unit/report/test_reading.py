"""The reference of the tables, and the examples that read them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from fedvsr.report.columns import reference
from fedvsr.schemas import SCHEMAS
from tests.unit.report.synthetic import write_run

DOCS = Path(__file__).parents[3] / "docs"
EXAMPLES = re.findall(
    r"^## (.+?)\n.*?^```python\n(.*?)^```", (DOCS / "how-to/read-results.md").read_text(),
    re.MULTILINE | re.DOTALL,
)  # fmt: skip


def test_the_reference_matches_the_schemas() -> None:
    text = (DOCS / "reference/results.md").read_text()
    assert text == reference(), "run: fedvsr report --columns > docs/reference/results.md"
    for name, schema in SCHEMAS.items():
        assert f"\n## {name}\n" in text
        for column in schema.names:
            assert f"| `{column}` |" in text
    assert (
        "| `psnr_db` | double | dB | PSNR of RGB, mean over frames; null if not scored. |" in text
    )


def test_each_reader_has_an_example() -> None:
    assert [name for name, _ in EXAMPLES] == [
        "`fedvsr.load_results`", "pandas", "DuckDB", "Polars", "Arrow", "Statistics",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "code"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_every_example_runs_and_prints_the_numbers(
    name: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in re.findall(r"^import (\w+)", code, re.MULTILINE):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module} (extra test)")
    client = {"round_idx": 1, "client_id": 3, "num_steps": 4, "loss": 0.25, "train_s": 2.0}
    for algorithm in ("fedavg", "fedvsr"):
        for seed in (1, 2):
            write_run(
                tmp_path / "results" / "sweep", f"{algorithm}-{seed}", algorithm=algorithm,
                seed=seed, clients=[client], psnr_db=lambda r, clip: 30.0 + r,
            )  # fmt: skip
    write_run(
        tmp_path / "results",
        "other",
        model="vrt",
        clients=[client],
        psnr_db=lambda r, clip: 40.0 + r,
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name, "exec"), {})
    printed = capsys.readouterr().out
    # The last round's PSNR, its gain over bicubic, a step's seconds, or the bytes of two rounds.
    expected = {"pandas": "32.0", "DuckDB": "3.0", "Polars": "0.5", "Arrow": "8000"}
    assert expected.get(name, "fedvsr") in printed.lower()
    if name == "DuckDB":
        assert "13.0" in printed, "another network is not averaged with the first"
