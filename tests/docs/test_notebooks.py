"""The notebooks run from the first cell to the last, on a small experiment."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.docs.notebooks import NOTEBOOKS, execute


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_tables_and_pictures(
    path: Path, small_yaml: Path, tmp_path: Path
) -> None:
    small = [
        f"SOURCE, RESULTS = {str(small_yaml)!r}, {str(tmp_path / 'results')!r}",
        "SETTINGS, EXECUTOR = {'federation.num_rounds': 2}, 'serial'",
    ]
    notebook = execute(path, tmp_path, "\n".join(small))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    shown = [kind for output in outputs for kind in output.get("data", ())]
    assert "image/png" in shown
    assert shown.count("text/html") >= 2
    if path.stem == "first-run":
        (table,) = (o.data["text/html"] for o in outputs if "round 2/2" in str(o.get("data")))
        assert "PSNR" in table, "the table of a run's rounds"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_with_its_outputs(path: Path) -> None:
    """The site shows them. `make notebooks` saves them."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    streams = [o for cell in code for o in cell.outputs if o.output_type == "stream"]
    assert not streams, "warnings of the machine that made it"
    data = [output.get("data", ()) for cell in code for output in cell.outputs]
    assert any("image/png" in kinds for kinds in data)
    assert path.stat().st_size < 300_000
