"""What `make dist` builds is installed and run away from the source."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_the_wheel_runs_without_the_source(tmp_path: Path, small_yaml: Path) -> None:
    pytest.importorskip("build")
    # The new environment sees the dependencies installed here: they take 6 GB.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = tmp_path.glob("fedvsr-0.1.0-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = ROOT / "fedvsr"
    files = {p for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    # A link, whose files are in the wheel.
    files |= {package / "sweeps" / path.name for path in (ROOT / "tune_configs").glob("*.yaml")}
    assert {str(path.relative_to(ROOT)) for path in files} == {
        name for name in names if name.startswith("fedvsr/")
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]
    with tarfile.open(*tmp_path.glob("fedvsr-0.1.0.tar.gz")) as sdist:
        assert "fedvsr-0.1.0/LICENSE" in sdist.getnames()

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    # With PYTHONPATH, pip would take the checkout's metadata for this release and install nothing.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, env=environment)
    (packages,) = (p for p in sys.path if p.endswith("site-packages"))
    (own,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # Searched after its own packages, so the fedvsr that runs is the wheel's.
    (own / "dependencies.pth").write_text(packages)

    def run(*arguments: str) -> str:
        command = [tmp_path / "venv" / "bin" / "fedvsr", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    show_path = [python, "-c", "import fedvsr; print(fedvsr.__file__)"]
    path = subprocess.check_output(show_path, text=True, cwd=tmp_path, env=environment)
    assert str(own) in path
    assert run("--version").strip() == "fedvsr 0.1.0"
    assert "demo" in run("presets")
    assert "Table 1" in run("reproduce")
    printed = run("run", str(small_yaml), "--executor", "serial", "--out", "out")
    assert "finished" in printed
