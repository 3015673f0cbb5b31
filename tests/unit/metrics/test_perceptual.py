"""LPIPS and DISTS, with weights of the published shapes that a seed makes."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from fedvsr.errors import UserError
from fedvsr.metrics import OPTIONAL, perceptual
from fedvsr.metrics.meter import Meter
from fedvsr.metrics.perceptual import ALEXNET, VGG16, dists, lpips

Frames = np.ndarray


@pytest.fixture(autouse=True)
def _fresh_networks() -> None:
    perceptual.lpips_network.cache_clear()
    perceptual.dists_network.cache_clear()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files like the published ones; the layers behind `features` are left out."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    features = {ALEXNET: torchvision.models.alexnet(weights=None).features, VGG16: vgg16_features()}
    for name, layers in features.items():
        state = {f"features.{key}": value for key, value in layers.state_dict().items()}
        torch.save(state, folder / name)
    return folder


def vgg16_features() -> torch.nn.Module:
    """VGG16 without its classifier, whose random weights take seconds to make."""
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            # So that features keep their size from layer to layer.
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layers


def pair() -> tuple[Frames, Frames]:
    rng = np.random.default_rng(0)
    gt = rng.integers(0, 256, (64, 72, 3), dtype=np.uint8)
    return np.clip(gt + rng.normal(0, 30, gt.shape), 0, 255).astype(np.uint8), gt


def test_lpips_is_that_of_its_definition(weights: Path) -> None:
    sr, gt = pair()
    assert lpips(sr, gt, str(weights)) == pytest.approx(_lpips(sr, gt, weights), rel=1e-4)
    assert lpips(gt, gt, str(weights)) == 0


def _lpips(sr: Frames, gt: Frames, weights: Path) -> float:
    """Equation 1 of Zhang et al. 2018, of RGB in [-1, 1], with the package's linear layers."""
    import lpips as package

    linear = torch.load(
        Path(package.__file__).parent / "weights" / "v0.1" / "alex.pth",
        weights_only=True,
        map_location="cpu",
    )
    alexnet = torchvision.models.alexnet(weights=None)
    alexnet.load_state_dict(torch.load(weights / ALEXNET, weights_only=True), strict=False)

    def features(frame: Frames) -> list[Tensor]:
        # The package scales [-1, 1] by the mean and deviation of ImageNet's frames.
        x = torch.from_numpy(frame.transpose(2, 0, 1)).float()[None] / 127.5 - 1
        shift, scale = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
        x = (x - torch.tensor(shift)[:, None, None]) / torch.tensor(scale)[:, None, None]
        outputs = []
        for layer in alexnet.features.eval():
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                outputs.append(F.normalize(x.clone(), dim=1))
        return outputs

    with torch.inference_mode():
        return sum(
            float(((a - b).square() * linear[f"lin{i}.model.1.weight"]).sum(1).mean())
            for i, (a, b) in enumerate(zip(features(sr), features(gt), strict=True))
        )


def test_dists_is_that_of_its_authors(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("DISTS_pytorch", reason="needs DISTS-pytorch (extra metrics)")
    vgg16 = torch.nn.ModuleDict({"features": vgg16_features()})
    vgg16.load_state_dict(torch.load(weights / VGG16, weights_only=True))
    monkeypatch.setattr("torchvision.models.vgg16", lambda pretrained: vgg16)
    theirs = package.DISTS(load_weights=False)
    monkeypatch.undo()
    balance = torch.load(Path(package.__file__).parent / "weights.pt", weights_only=True)
    theirs.load_state_dict(balance, strict=False)
    sr, gt = pair()
    x, y = (torch.from_numpy(f.transpose(2, 0, 1)).float()[None] / 255 for f in (sr, gt))
    value = dists(sr, gt, str(weights))
    assert value == pytest.approx(theirs(x, y).item(), rel=1e-4)
    assert value > 0.005
    assert dists(gt, gt, str(weights)) == pytest.approx(0, abs=1e-6)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_values(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sr, gt = pair()
    on_gpu = lpips(sr, gt, str(weights)), dists(sr, gt, str(weights))
    perceptual.lpips_network.cache_clear()
    perceptual.dists_network.cache_clear()
    monkeypatch.setattr(perceptual, "_device", lambda: "cpu")
    assert on_gpu == pytest.approx((lpips(sr, gt, str(weights)), dists(sr, gt, str(weights))), 5e-3)


def test_a_clips_value_is_the_mean_over_its_frames(weights: Path) -> None:
    sr, gt = pair()
    with Meter(["lpips", "dists"], str(weights)) as meter:
        meter.add(sr, gt)
        meter.add(gt, gt)
        means = meter.means()
    assert means["lpips"] == pytest.approx(lpips(sr, gt, str(weights)) / 2)
    assert means["dists"] == pytest.approx(dists(sr, gt, str(weights)) / 2, abs=1e-6)
    assert means["psnr_db"] == np.inf


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_frames_that_do_not_fit(name: str, weights: Path) -> None:
    compare = {"lpips": lpips, "dists": dists}[name]
    sr, gt = pair()
    with pytest.raises(ValueError, match="different shapes"):
        compare(sr, gt[:40], str(weights))
    least = OPTIONAL[name].min_side
    assert np.isfinite(compare(sr[:least, :least], gt[:least, :least], str(weights)))
    with (
        Meter([name], str(weights)) as meter,
        pytest.raises(UserError, match=f"{name} needs frames of 32 pixels a side, and .* 72 x 31"),
    ):
        meter.add(sr[:31], gt[:31])


@pytest.mark.parametrize(("name", "file"), [("lpips", ALEXNET), ("dists", VGG16)])
def test_weights_that_cannot_be_had(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UserError, match=rf"no network.*fetch https://.*/{file} elsewhere"):
        Meter([name])
    with pytest.raises(UserError, match=rf"{file} is missing .*evaluation.metric_weights.*fetch"):
        Meter([name], str(tmp_path))
    (tmp_path / file).write_bytes(b"no weights")
    with pytest.raises(UserError, match=f"cannot read .*{file}"):
        Meter([name], str(tmp_path))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / file)
    with pytest.raises(UserError, match=rf"{file} (has|lacks) "):
        Meter([name], str(tmp_path))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setattr(perceptual, "find_spec", lambda _: None)
    for name in ("lpips", "dists"):
        package = OPTIONAL[name].package
        with pytest.raises(UserError, match=rf"{package}: pip install 'fedvsr\[metrics\]'"):
            Meter([name])
