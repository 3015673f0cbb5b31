from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvsr import models
from fedvsr.config import ExperimentConfig
from fedvsr.inference import export as module
from fedvsr.models import load_checkpoint
from fedvsr.models.origin import joined, source_of
from fedvsr.models.spec import AdapterConfig
from fedvsr.runs.run import create_run
from fedvsr.training.checkpoint import save_model
from tests.unit.cli.test_cli import fedvsr

SOURCE = ("a.pth: RVRT, CC-BY-NC-4.0", "b.pth: weights of unknown origin")


@pytest.fixture
def run(small: ExperimentConfig, tmp_path: Path) -> Path:
    """Folder of a finished run, with its network only."""
    run = create_run(small, tmp_path / "results")
    torch.manual_seed(0)
    network = models.build_fresh(small.model)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_model(run.folder / "model.safetensors", network, small.model, SOURCE)
    return run.folder


def sr(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.rand(1, 3, 3, 12, 16, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("to", ["safetensors", "torch"])
def test_an_exported_network_loads_and_gives_the_same(
    run: Path, tmp_path: Path, to: str, small: ExperimentConfig
) -> None:
    path = tmp_path / f"network.{to}"
    arguments = ["--to", to, "--out", str(path), "--results", str(run.parent)]
    assert fedvsr("export", run.name, *arguments) == 0
    loaded = load_checkpoint(path, small.model if to == "torch" else None)
    assert torch.equal(sr(loaded), sr(load_checkpoint(run / "model.safetensors")))
    if to == "torch":
        content = torch.load(path, weights_only=True)
        assert set(content) == {"params", "weights_source"}
    assert source_of(path) == SOURCE
    assert fedvsr("export", run.name, *arguments) == 2, "it is there already"
    assert fedvsr("export", run.name, *arguments, "--overwrite") == 0


def test_a_merged_network_is_a_plain_one(
    small: ExperimentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = AdapterConfig(rank=2, targets="conv")
    model = small.model.model_copy(update={"adapter": adapter})
    run = create_run(small.model_copy(update={"model": model}), tmp_path / "results").folder
    network = models.build_fresh(model)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_model(run / "model.safetensors", network, model, SOURCE)
    want = sr(load_checkpoint(run / "model.safetensors"))
    path = tmp_path / "plain.safetensors"
    assert fedvsr("export", str(run), "--to", "safetensors", "--merge", "--out", str(path)) == 0
    plain = load_checkpoint(path)
    assert torch.equal(sr(plain), want)
    assert list(plain.state_dict()) == list(models.build_fresh(small.model).state_dict())
    assert source_of(path) == SOURCE
    # The settings that it names are those of a plain network, of which a run can begin.
    settings = small.model.model_dump() | {"weights": str(path)}
    assert torch.equal(sr(models.build(**settings)), want)
    capsys.readouterr()
    assert fedvsr("export", str(path), "--to", "torch", "--merge", "--out", f"{path}.pth") == 2
    assert capsys.readouterr().err == (
        f"error: {path} has no adapters to merge; leave --merge out\n"
    )


def test_onnx_gives_what_pytorch_gives(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("onnx", "onnxscript"):
            pytest.importorskip(name, reason=f"needs {name} (extra onnx)")
        onnxruntime = pytest.importorskip("onnxruntime", reason="needs it (extra onnx)")
    path = tmp_path / "network.onnx"
    arguments = ["--to", "onnx", "--out", str(path), "--input", "3x12x16"]
    assert fedvsr("export", str(run), *arguments) == 0
    assert "for input 3x12x16; differs from PyTorch by" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["weights_source"] == joined(SOURCE)
    lq = torch.rand(1, 3, 3, 12, 16, generator=torch.Generator().manual_seed(1)).numpy()
    (output,) = session.run(["sr"], {"lq": lq})
    assert output.shape == (1, 3, 3, 48, 64)
    assert np.abs(output - sr(load_checkpoint(run / "model.safetensors")).numpy()).max() < 1e-5


def test_a_network_that_onnx_cannot_express_is_refused_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: True)

    def fail(*_: object, **__: object) -> None:
        try:
            raise NotImplementedError("no operator for\nthis")
        except NotImplementedError as inner:
            raise RuntimeError("wrapped") from inner

    monkeypatch.setattr(torch.onnx, "export", fail)
    path = tmp_path / "network.onnx"
    assert fedvsr("export", str(run), "--to", "onnx", "--out", str(path)) == 2
    err = capsys.readouterr().err
    assert "cannot be written as ONNX (NotImplementedError: no operator for)" in err
    assert err.count("\n") == 1
    assert list(tmp_path.glob("*onnx*")) == []


def test_an_output_that_differs_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    monkeypatch.setattr(module, "_write", lambda network, lq, path, name: path.touch())
    monkeypatch.setattr(module, "_difference", lambda *_: 0.01)
    path = tmp_path / "network.onnx"
    assert fedvsr("export", str(run), "--to", "onnx", "--out", str(path)) == 2
    assert "differs from PyTorch by 0.01" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx", "--input", "5x64"], "--input 5x64 is not of the form"),
        (["--to", "torch", "--input", "5x64x64"], "--input 5x64x64 goes with --to onnx"),
        (["--to", "torch", "--out", "nowhere/x.pth"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedvsr("export", str(run), *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_safetensors_of_a_bare_file_and_missing_packages(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "x")]
    assert fedvsr("export", str(run / "model.safetensors"), "--to", "safetensors", *out) == 2
    assert "give the run, or --to torch" in capsys.readouterr().err
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert fedvsr("export", str(run), "--to", "onnx", *out) == 2
    assert "pip install 'fedvsr[onnx]'" in capsys.readouterr().err
