"""LPIPS and DISTS. Frames are uint8 RGB arrays (H, W, 3).

Both compare features of a network that was trained on ImageNet, on the GPU if there is one. The
network's weights are a file that torchvision downloads once, or that lies in a folder which the
caller names.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.errors import FileError, UserError
from fedvsr.metrics import OPTIONAL
from fedvsr.metrics.fidelity import Frames, require_frames
from fedvsr.models._checkpoint import load_tensors, read_tensors

ALEXNET, VGG16 = "alexnet-owt-7be5be79.pth", "vgg16-397923af.pth"
"""Files of weights, as torchvision publishes and names them; a name ends in the SHA-256's start."""
_PUBLISHED = "https://download.pytorch.org/models"

# Channels and number of the convolutions of each of VGG16's stages.
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# Channels that DISTS compares: those of the frame and of each stage's output.
_CHANNELS = (3, *(channels for channels, _ in _STAGES))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def lpips(sr: Frames, gt: Frames, weights: str | None = None) -> float:
    """Compute learned perceptual distance (Zhang et al. 2018, AlexNet, version 0.1) of a frame.

    Args:
        sr: uint8 RGB; it is scaled to [-1, 1], as in the measure's training.
        gt: the same shape.
        weights: a folder with `ALEXNET`; None for the file that torchvision keeps or downloads.

    Returns:
        0 for equal frames; lower is more similar.

    Raises:
        UserError: the package is missing, or the file of weights cannot be had.
    """
    require_frames(sr, gt)
    network = lpips_network(weights)
    with torch.inference_mode():
        return float(network(_unit(sr) * 2 - 1, _unit(gt) * 2 - 1))


def dists(sr: Frames, gt: Frames, weights: str | None = None) -> float:
    """Compute the distance of structure and texture (Ding et al. 2020) of a frame.

    Args:
        sr: uint8 RGB, used in its full size; it is scaled to [0, 1].
        gt: the same shape.
        weights: a folder with `VGG16`; None for the file that torchvision keeps or downloads.

    Returns:
        0 for equal frames; lower is more similar.

    Raises:
        UserError: the package is missing, or the file of weights cannot be had.
    """
    require_frames(sr, gt)
    network = dists_network(weights)
    with torch.inference_mode():
        return float(network(_unit(sr), _unit(gt)))


@lru_cache(maxsize=1)
def lpips_network(weights: str | None) -> nn.Module:
    """The network of `lpips`, with its weights."""
    try:
        import lpips as package
    except ImportError:
        raise missing("lpips") from None
    with warnings.catch_warnings():
        # The package calls torchvision's AlexNet in a way about which newer releases warn.
        warnings.simplefilter("ignore")
        # Its linear layers are in the package; AlexNet's layers are replaced below.
        network: nn.Module = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    path = weights_file(ALEXNET, weights, "lpips")
    tensors = read_tensors(path)[0]
    alexnet = network.net
    assert isinstance(alexnet, nn.Module)
    # Its layers are those of `features`, in slices: slice2.3 is features.3.
    wanted = {name: f"features.{name.partition('.')[2]}" for name in alexnet.state_dict()}
    own = {name: tensors[source] for name, source in wanted.items() if source in tensors}
    load_tensors(alexnet, own, path)
    return network.eval().to(_device())


@lru_cache(maxsize=1)
def dists_network(weights: str | None) -> nn.Module:
    """The network of `dists`, with its weights."""
    # The package is read and not run: it takes no weights but downloaded ones.
    spec = find_spec(OPTIONAL["dists"].package)
    if spec is None or not spec.submodule_search_locations:
        raise missing("dists")
    network = Dists()
    path = weights_file(VGG16, weights, "dists")
    tensors = read_tensors(path)[0]
    features = {
        name: tensors[f"features.{name}"]
        for name in network.features.state_dict()
        if f"features.{name}" in tensors
    }
    load_tensors(network.features, features, path)
    path = Path(spec.submodule_search_locations[0]) / "weights.pt"
    balance = read_tensors(path)[0]
    load_tensors(network.balance, {k: v.flatten() for k, v in balance.items()}, path)
    return network.eval().to(_device())


class Dists(nn.Module):
    """DISTS: structure and texture of VGG16's features, weighted by channel.

    Departures from VGG16: the maximum of each pooling is replaced by the root of a Hann-weighted
    mean of squares, which aliases less, and the frame itself counts as the first features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        # Named by their places in VGG16, in which a ReLU follows each, and a pooling each stage.
        self.stages, place, before = list[list[str]](), 0, 3
        for channels, count in _STAGES:
            self.stages.append([str(place + 2 * i) for i in range(count)])
            for name in self.stages[-1]:
                self.features[name] = nn.Conv2d(before, channels, 3, padding=1)
                before = channels
            place += 2 * count + 1
        self.balance = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(sum(_CHANNELS))) for name in ("alpha", "beta")}
        )
        taps = torch.hann_window(5, periodic=False)[1:-1]
        self.register_buffer("window", torch.outer(taps, taps) / taps.sum() ** 2, persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance () of two frames (1, 3, H, W) in [0, 1]."""
        alpha, beta = (self.balance[name] for name in ("alpha", "beta"))
        similarity = x.new_zeros(())
        starts = np.cumsum([0, *_CHANNELS]).tolist()
        for (start, end), f, g in zip(
            pairwise(starts), self._features(x), self._features(y), strict=True
        ):
            mu_f, mu_g = f.mean((2, 3)), g.mean((2, 3))
            var_f, var_g = (
                (h - mu[..., None, None]).square().mean((2, 3)) for h, mu in ((f, mu_f), (g, mu_g))
            )
            covariance = (f * g).mean((2, 3)) - mu_f * mu_g
            texture = (2 * mu_f * mu_g + 1e-6) / (mu_f.square() + mu_g.square() + 1e-6)
            structure = (2 * covariance + 1e-6) / (var_f + var_g + 1e-6)
            similarity = similarity + (alpha[start:end] * texture).sum()
            similarity = similarity + (beta[start:end] * structure).sum()
        distance: Tensor = 1 - similarity / (alpha.sum() + beta.sum())
        return distance

    def _features(self, x: Tensor) -> list[Tensor]:
        features = [x]
        mean, std = (x.new_tensor(values)[None, :, None, None] for values in (_MEAN, _STD))
        x = (x - mean) / std
        for i, names in enumerate(self.stages):
            x = self._pooled(x) if i else x
            for name in names:
                convolve = self.features[name]
                assert isinstance(convolve, nn.Conv2d)
                x = F.relu(convolve(x), inplace=True)
            features.append(x)
        return features

    def _pooled(self, x: Tensor) -> Tensor:
        """Half the size: the root of the weighted mean of squares."""
        assert isinstance(self.window, Tensor)
        window = self.window.expand(x.shape[1], 1, 3, 3)
        mean = F.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1])
        return (mean + 1e-12).sqrt()


def weights_file(name: str, folder: str | None, metric: str) -> Path:
    """A file of weights: in a folder, or where torchvision keeps it, downloaded if it is missing.

    Args:
        name: the file's published name.
        folder: where it must be; None for torchvision's place.
        metric: what needs it.

    Raises:
        UserError: the folder does not have it, or it cannot be downloaded.
    """
    url = f"{_PUBLISHED}/{name}"
    if folder is not None:
        path = Path(folder).expanduser() / name
        if not path.is_file():
            raise FileError(path, f"is missing ({metric}, evaluation.metric_weights): fetch {url}")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{metric}: its weights cannot be downloaded ({error}); fetch {url} elsewhere, and "
            "name its folder in evaluation.metric_weights"
        ) from None
    return path


def missing(name: str) -> UserError:
    """The refusal of a metric whose package is not installed."""
    return UserError(
        f"evaluation.metrics: {name} needs the package {OPTIONAL[name].package}: "
        "pip install 'fedvsr[metrics]'"
    )


def _unit(frame: Frames) -> Tensor:
    """A frame as float32 (1, 3, H, W) in [0, 1]."""
    values = np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32)
    return torch.from_numpy(values)[None].to(_device()) / 255


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
