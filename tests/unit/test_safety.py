"""The program runs no code from files and records no secrets."""

from __future__ import annotations

import ast
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import fedvsr as package
from fedvsr.errors import UserError
from fedvsr.models import load_checkpoint
from tests.unit.cli.test_cli import fedvsr

SOURCES = sorted(Path(str(package.__file__)).parent.rglob("*.py"))
# Functions that run code named in a file, in any module.
UNPICKLERS = {"Unpickler", "loads", "read_pickle", "unsafe_load", "full_load", "load_pickle"}
PICKLING_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
# The module that may call torch.load, to read tensors and plain containers of released files.
MAY_LOAD = {"models/_checkpoint.py"}


def loads_code(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line numbers at which a module may run code from a file, with the reason."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = {n.partition(".")[0] for n in [*names, getattr(node, "module", "") or ""]}
            if pickling := modules & PICKLING_MODULES:
                yield node.lineno, f"imports {pickling}"
            if getattr(node, "module", "") == "pickle":
                yield node.lineno, "imports from pickle"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = ast.unparse(node.func.value)
        call = f"{owner}.{node.func.attr}"
        arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
        safe = {
            "torch.load": arguments.get("weights_only") == "True",
            "np.load": arguments.get("allow_pickle") == "False",
            "json.loads": True,
        }
        loader = node.func.attr in UNPICKLERS or (
            node.func.attr == "load" and owner in {"torch", "np", "numpy", "pickle", "yaml"}
        )
        if loader and not safe.get(call, False):
            yield node.lineno, call


def test_nothing_is_unpickled_from_disk() -> None:
    root = SOURCES[0].parent
    calls = {
        f"{path.relative_to(root)}:{line}": what
        for path in SOURCES
        for line, what in loads_code(ast.parse(path.read_text()))
    }
    assert calls == {}
    users = {str(p.relative_to(root)) for p in SOURCES if "torch.load(" in p.read_text()}
    assert users == MAY_LOAD


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)",
        "pickle.loads(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "pd.read_pickle(path)",
        "yaml.unsafe_load(text)",
        "ray.cloudpickle.loads(text)",
        "import joblib",
        "from pickle import load",
    ],
)
def test_unsafe_lines_are_recognised(line: str) -> None:
    assert list(loads_code(ast.parse(line)))


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_released_file_is_refused_and_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "exploded", tmp_path / "released.pth"
    torch.save({"params": Bomb(mark)}, path)
    with pytest.raises(UserError):
        load_checkpoint(str(path))
    path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(UserError):
        load_checkpoint(str(path))
    assert not mark.exists()


def test_no_secret_of_the_environment_is_recorded(
    small_yaml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret = "sesame-3f1d8c2a9b"
    for name in ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "FEDVSR_TOKEN"):
        monkeypatch.setenv(name, secret)
    command = ("run", str(small_yaml), "--executor", "serial", "--out", str(tmp_path))
    assert fedvsr(*command, "--set", "federation.num_rounds=1") == 0
    assert fedvsr("submit", str(small_yaml), "--dry-run", "--package", str(tmp_path / "p")) == 0
    captured = capsys.readouterr()
    assert "ray job submit" in captured.out
    assert secret not in captured.out + captured.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "runs.parquet" for path in files)
    for path in files:
        # Tables are compressed, so their bytes do not show the text.
        text = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else ""
        assert secret not in text, path
        assert secret.encode() not in path.read_bytes(), path
