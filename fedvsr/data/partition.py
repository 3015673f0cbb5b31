"""Deal clips to clients, each clip to at most one client."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedvsr.data.clips import Clip, Frames
from fedvsr.data.config import Partition
from fedvsr.data.frames import natural
from fedvsr.errors import UserError
from fedvsr.seeding import generator

# Pairs of frames, spread over a clip, that its motion and texture are measured on.
_PAIRS = 8


def deal(
    clips: Sequence[Clip],
    num_clients: int,
    seed: int,
    partition: Partition = "less",
    *,
    alpha: float = 0.5,
    clips_per_client: int | None = None,
    setting: str = "data.num_clients",
) -> list[tuple[Clip, ...]]:
    """Deal clips to clients; client i gets the i-th tuple.

    Args:
        clips: the clips, with distinct ids.
        num_clients: number of clients; each gets at least one clip.
        seed: seed of all random draws.
        partition: `less`: at random, numbers of clips differ by at most one (the paper's less
            heterogeneous setting). `more`: one label per client (its more heterogeneous setting),
            or several if there are more labels than clients; if there are fewer, clients share a
            label's clips at random. `by_folder`: client i has all clips of
            the i-th label; a sub-folder's name is a label. `dirichlet`: shares of each label's
            clips are drawn from Dirichlet(alpha) over clients (Hsu et al. 2019). `quantity`: at
            random, with shares of all clips from Dirichlet(alpha). `motion`, `texture`: clips are
            sorted by the strength of their motion or texture, and client 0 gets the weakest.
        alpha: concentration of the Dirichlet distribution; smaller is more skewed.
        clips_per_client: keep this many clips of each client, drawn at random; None: all.
        setting: the setting that gives `num_clients`, for messages.

    Raises:
        UserError: there are too few clips or labels.
    """
    if len(clips) < num_clients:
        raise UserError(
            f"{setting} = {num_clients}, but there are only {len(clips)} training clips; "
            "lower it, or add clips"
        )
    rng = generator(seed, "partition")
    if partition == "less":
        shares = _round_robin(rng.permutation(len(clips)), num_clients)
    elif partition == "more":
        shares = _by_label(clips, num_clients, rng, setting)
    elif partition == "by_folder":
        shares = _by_folder(clips, num_clients, setting)
    elif partition == "dirichlet":
        shares = _dirichlet(clips, num_clients, alpha, rng)
    elif partition == "quantity":
        sizes = _sizes(len(clips), rng.dirichlet([alpha] * num_clients))
        shares = _split(rng.permutation(len(clips)), _at_least_one(sizes))
    else:
        statistic = texture if partition == "texture" else motion
        order = np.argsort([statistic(clip) for clip in clips], kind="stable")
        shares = _split(order, [len(part) for part in np.array_split(order, num_clients)])
    if clips_per_client is not None:
        shares = [_keep(share, clips_per_client, i, seed) for i, share in enumerate(shares)]
    return [tuple(clips[j] for j in share) for share in shares]


def motion(clip: Clip) -> float:
    """Mean absolute change of low-resolution luma from one frame to the next, 0 to 255."""
    frames = _luma(clip)
    return float(np.abs(np.diff(frames, axis=1)).mean()) if frames.shape[1] > 1 else 0.0


def texture(clip: Clip) -> float:
    """Mean absolute difference of neighbouring pixels of low-resolution luma, 0 to 255."""
    frames = _luma(clip)[:, 0]
    across, down = (np.abs(np.diff(frames, axis=axis)) for axis in (-1, -2))
    return float(across.mean() + down.mean()) / 2


def _luma(clip: Clip) -> npt.NDArray[np.float32]:
    """Low-resolution luma of pairs of neighbouring frames, (pairs, 2, H, W).

    Of a clip with one frame: (1, 1, H, W).
    """
    lq = clip.lq()
    last = max(clip.num_frames - 2, 0)
    starts = sorted(set(np.linspace(0, last, _PAIRS).astype(int).tolist()))
    pairs: list[Frames] = [np.asarray(lq[start : start + 2]) for start in starts]
    rgb = np.stack(pairs).astype(np.float32)
    # BT.601.
    luma: npt.NDArray[np.float32] = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    return luma


def _round_robin(order: npt.NDArray[np.int64], num_clients: int) -> list[list[int]]:
    return [order[i::num_clients].tolist() for i in range(num_clients)]


def _by_label(
    clips: Sequence[Clip], num_clients: int, rng: np.random.Generator, setting: str
) -> list[list[int]]:
    labels = sorted({clip.label for clip in clips})
    if len(labels) == 1 < num_clients:
        raise UserError(
            f"data.partition = more deals clips by their labels, and all have the label "
            f"{labels[0]}; set data.partition = less"
        )
    order = [labels[j] for j in rng.permutation(len(labels))]
    if len(labels) < num_clients:
        return _sharing_labels(clips, order, num_clients, rng, setting)
    owner = {label: i % num_clients for i, label in enumerate(order)}
    shares: list[list[int]] = [[] for _ in range(num_clients)]
    for j, clip in enumerate(clips):
        shares[owner[clip.label]].append(j)
    return shares


def _sharing_labels(
    clips: Sequence[Clip],
    labels: Sequence[str],
    num_clients: int,
    rng: np.random.Generator,
    setting: str,
) -> list[list[int]]:
    """One label per client: client i has a part of the clips of `labels[i % len(labels)]`."""
    shares: list[list[int]] = [[] for _ in range(num_clients)]
    for first, label in enumerate(labels):
        owners = range(first, num_clients, len(labels))
        own = rng.permutation([j for j, clip in enumerate(clips) if clip.label == label])
        if len(own) < len(owners):
            raise UserError(
                f"data.partition = more gives every client one label, and {label} has {len(own)} "
                f"clips for {len(owners)} of {setting} = {num_clients}; lower it, or add "
                "clips"
            )
        for client_id, share in zip(owners, _round_robin(own, len(owners)), strict=True):
            shares[client_id] = sorted(share)
    return shares


def _by_folder(clips: Sequence[Clip], num_clients: int, setting: str) -> list[list[int]]:
    labels = sorted({clip.label for clip in clips}, key=natural)
    if len(labels) != num_clients:
        raise UserError(
            f"data.partition = by_folder makes a client of each of the {len(labels)} folders "
            f"(labels) of the training clips; set {setting} = {len(labels)}"
        )
    return [[j for j, clip in enumerate(clips) if clip.label == label] for label in labels]


def _dirichlet(
    clips: Sequence[Clip], num_clients: int, alpha: float, rng: np.random.Generator
) -> list[list[int]]:
    shares: list[list[int]] = [[] for _ in range(num_clients)]
    for label in sorted({clip.label for clip in clips}):
        own = rng.permutation([j for j, clip in enumerate(clips) if clip.label == label])
        parts = _split(own, _sizes(len(own), rng.dirichlet([alpha] * num_clients)))
        for share, part in zip(shares, parts, strict=True):
            share += part
    # A client without clips cannot train, so it gets one from the client that has most.
    for share in shares:
        if not share:
            richest = max(shares, key=len)
            share.append(richest.pop())
    return shares


def _sizes(total: int, parts: npt.NDArray[np.float64]) -> list[int]:
    """Split `total` into whole numbers in proportion to `parts`, by largest remainders."""
    exact = total * parts
    sizes = np.floor(exact).astype(int)
    most = np.argsort(sizes - exact, kind="stable")[: total - sizes.sum()]
    sizes[most] += 1
    whole: list[int] = sizes.tolist()
    return whole


def _at_least_one(sizes: list[int]) -> list[int]:
    while 0 in sizes:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(0)] += 1
    return sizes


def _split(order: npt.NDArray[np.int64], sizes: Sequence[int]) -> list[list[int]]:
    ends = np.cumsum(sizes)[:-1]
    return [part.tolist() for part in np.split(order, ends)]


def _keep(share: list[int], count: int, client_id: int, seed: int) -> list[int]:
    if len(share) < count:
        raise UserError(
            f"data.clips_per_client = {count}, but client {client_id} gets only {len(share)}; "
            "lower it, or add clips"
        )
    drawn = generator(seed, "partition", client_id).permutation(len(share))[:count]
    return [share[i] for i in sorted(drawn.tolist())]
