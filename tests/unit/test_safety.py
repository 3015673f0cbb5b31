"""The program runs no code from files and records no secrets."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import fedvsr as package
from fedvsr import plugins, yaml12
from fedvsr.checked_text import read_yaml, write_yaml
from fedvsr.cluster import archive
from fedvsr.cluster.fetch import JOB_VARIABLE, record_folder
from fedvsr.errors import UserError
from fedvsr.models import load_checkpoint
from fedvsr.tuning.table import write_trials
from tests.unit.cli.test_cli import fedvsr
from tests.unit.cluster.server import JOB, SSL_WARNING, Server
from tests.unit.tuning.test_progress import as_running

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


TUNE_REPORT = ("tune-report", "s", "--out", "{out}")
COMMANDS = [
    ("list", "--out", "{out}"),
    ("show", "{run}"),
    ("watch", "{done}"),
    ("report", "{run}", "--format", "md", "--out", "{out}/report"),
    ("export", "{run}", "--to", "torch", "--out", "{out}/exported.pth"),
    ("upscale", "{video}", "--out", "{out}/large.mp4", "--checkpoint", "{run}"),
    ("upscale", "{video}", "--out", "{out}/large.mp4", "--checkpoint", "{out}/planted.pth"),
    ("evaluate", "{run}", "{video}"),
    ("evaluate", "{out}/planted.safetensors", "{video}"),
    TUNE_REPORT,
    ("data", "info", "{store}"),
    ("data", "verify", "{store}"),
    ("run", "{small}", "--executor", "serial", "--out", "{out}", "--resume"),
    ("stop", JOB, "--address", "{server}"),
    ("logs", JOB, "--address", "{server}"),
    (
        *("submit", "{small}", "--address", "{server}", "--include", "{run}"),
        *("--package", "{out}/package"),
    ),
    ("fetch", JOB, "--address", "{server}", "--out", "{out}/fetched", "--checkpoints"),
    # Again, over the copy.
    ("fetch", JOB, "--address", "{server}", "--checkpoints", "--out", "{out}/fetched"),
]
# Names that Ray Tune, torch and others give to their pickles.
PICKLES = ["tuner.pkl", "trainable.pkl", "error.pkl", "searcher-state.pkl", "data.pkl", "net.pth"]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.mark.full
@pytest.mark.filterwarnings(SSL_WARNING)
@pytest.mark.parametrize("replaced", [False, True])
def test_no_command_unpickles_what_lies_in_its_folders(
    replaced: bool,
    undisturbed: Path,
    small_yaml: Path,
    video: Path,
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`tune --resume`, which needs Ray, has a test in tests/integration/test_sweep.py."""
    mark, out = tmp_path / "exploded", tmp_path / "out"
    run = Path(shutil.copytree(undisturbed, out / undisturbed.name))
    (run / "checkpoints" / "round-000003.safetensors").unlink()
    sweep = out / "sweeps" / "s"
    shutil.copytree(undisturbed, sweep / "runs" / "one")
    (store,) = (small_yaml.parent / "cache").glob("*/")
    store = Path(shutil.copytree(store, tmp_path / "store"))
    bomb = pickle.dumps(Bomb(mark))
    folders = {path.parent for path in [*out.rglob("*"), *store.rglob("*")]} | {sweep / "tune"}
    for folder in folders:
        folder.mkdir(exist_ok=True)
        for name in PICKLES:
            (folder / name).write_bytes(bomb)
    for name in ("planted.pth", "planted.safetensors"):
        (out / name).write_bytes(bomb)
    write_trials(sweep / "trials.parquet", [], [])
    as_running(run)
    if replaced:
        # The identity of the run stays, so that it is found.
        for path in [*out.rglob("*"), *store.rglob("*")]:
            if path.is_file() and path.name != "config.yaml":
                path.write_bytes(bomb)
    known: dict[str, object] = {
        "out": out,
        "run": run,
        "video": video,
        "store": store,
        "small": small_yaml,
    }
    known["done"] = sweep / "runs" / "one"
    with monkeypatch.context() as patch:
        patch.setenv(JOB_VARIABLE, JOB)
        record_folder(out, run.name)
    sent = "".join(f"{line}\n" for line in archive.lines(out, JOB, checkpoints=True))
    server.out, server.logs = str(out), [(sent, True)] * 2
    known["server"] = server.address
    codes = [fedvsr(*(part.format(**known) for part in command)) for command in COMMANDS]
    assert not mark.exists()
    refused = {command for command, code in zip(COMMANDS, codes, strict=True) if code}
    if replaced:
        # What a bomb replaced is no fault of the program; `list` may pass over it.
        assert set(codes) <= {0, 2}
    else:
        # Only the files that are bombs themselves are refused, and a sweep without trials.
        bombs = {command for command in COMMANDS if "planted" in "".join(command)}
        assert refused - {TUNE_REPORT} == bombs


READ = [
    ("list", "--out", "{out}"),
    ("show", "{run}"),
    ("watch", "{run}"),
    ("report", "{out}", "--format", "md", "--out", "{out}/report"),
    # It has no score yet.
    ("tune-report", "{sweep}"),
    # A checkpoint of another configuration.
    ("run", "{small}", "--executor", "serial", "--out", "{out}", "--resume"),
]


def test_reading_results_executes_no_plugin_that_they_keep(
    undisturbed: Path, small_yaml: Path, tmp_path: Path
) -> None:
    mark, out = tmp_path / "executed", tmp_path / "out"
    run = Path(shutil.copytree(undisturbed, out / undisturbed.name))
    sweep = out / "sweeps" / "s"
    shutil.copytree(undisturbed, sweep / "runs" / "one")
    for folder in (run, sweep / "runs" / "one"):
        path = folder / "plugins" / "algorithm" / "bomb.py"
        path.parent.mkdir(parents=True)
        path.write_text(f"open({str(mark)!r}, 'w').close()\n")
        settings = read_yaml(folder / "config.yaml")
        sha256 = plugins.read("algorithm", path).sha256
        settings["algorithm"] = {"name": "plugins/algorithm/bomb.py", "sha256": sha256}
        write_yaml(folder / "config.yaml", yaml12.dump(settings))
    row = {"sweep": "s", "trial": 0, "run_id": "one", "status": "running", "num_rounds": 3}
    write_trials(sweep / "trials.parquet", [row | {"round_idx": 0, "attempts": 1}], [])
    saved = "name: s\nbase: demo\nspace: {seed: {grid: [1, 2]}}\nplugins: {}\n"
    write_yaml(sweep / "sweep.yaml", saved)
    known = {"out": out, "run": run, "sweep": sweep, "small": small_yaml}
    codes = [fedvsr(*(part.format(**known) for part in command)) for command in READ]
    assert not mark.exists()
    assert codes == [0, 0, 0, 0, 2, 2]
    # What uses the network executes it, as the page on plug-ins says.
    assert fedvsr("export", str(run), "--to", "torch", "--out", str(out / "x.pth")) == 2
    assert mark.exists()


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
