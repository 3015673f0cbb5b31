"""Executes the notebooks of the documentation, and saves them with their outputs.

python -m tests.docs.notebooks
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, folder: Path, parameters: str | None = None) -> nbformat.NotebookNode:
    """The notebook with its outputs.

    Args:
        path: the notebook.
        folder: the working directory.
        parameters: replace the cell with the tag `parameters`; None: as it is.
    """
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    given = cell.source
    cell.source = given if parameters is None else parameters
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}}).execute()
    cell.source = given
    return notebook


def save() -> None:
    """Execute each notebook as it is, and write its outputs into it."""
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        for cell in notebook.cells:
            # When each cell ran says nothing, and would change the file each time.
            cell.metadata.pop("execution", None)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    save()
