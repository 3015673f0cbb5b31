"""Deal clips to clients, each clip to at most one client.

Clips are dealt as indices in arrays, so that a million of them take no objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace

import numpy as np
import numpy.typing as npt

from fedvsr.data.client_clips import ClientClips, ClipTable
from fedvsr.data.clips import Clip, Frames
from fedvsr.data.config import Partition
from fedvsr.data.frames import natural
from fedvsr.errors import UserError
from fedvsr.seeding import generator

# Pairs of frames, spread over a clip, that its motion and texture are measured on.
_PAIRS = 8
_Ints = npt.NDArray[np.int64]
# The indices of all clients' clips in the order of clients, and each client's number of them.
_Shares = tuple[_Ints, _Ints]


def deal(
    clips: Sequence[Clip],
    num_clients: int,
    seed: int,
    partition: Partition = "less",
    *,
    alpha: float = 0.5,
    clips_per_client: int | None = None,
    setting: str = "data.num_clients",
) -> ClientClips:
    """Deal clips to clients.

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
    table = ClipTable.of(clips)
    order, counts = shares(
        table,
        num_clients,
        seed,
        partition,
        alpha=alpha,
        clips_per_client=clips_per_client,
        setting=setting,
    )
    return ClientClips(table.take(order), np.cumsum(counts))


def shares(
    clips: ClipTable,
    num_clients: int,
    seed: int,
    partition: Partition = "less",
    *,
    alpha: float = 0.5,
    clips_per_client: int | None = None,
    setting: str = "data.num_clients",
) -> _Shares:
    """The same as `deal`, as indices of clips; see there.

    Returns:
        The indices of the first client's clips, then those of the second, and so on; and each
        client's number of them.
    """
    if len(clips) < num_clients:
        raise UserError(
            f"{setting} = {num_clients}, but there are only {len(clips)} training clips; "
            "lower it, or add clips"
        )
    rng = generator(seed, "partition")
    if partition == "less":
        dealt = _round_robin(rng.permutation(len(clips)), num_clients)
    elif partition == "more":
        dealt = _by_label(clips, num_clients, rng, setting)
    elif partition == "by_folder":
        dealt = _by_folder(clips, num_clients, setting)
    elif partition == "dirichlet":
        dealt = _dirichlet(clips, num_clients, alpha, rng)
    elif partition == "quantity":
        sizes = _sizes(len(clips), rng.dirichlet([alpha] * num_clients))
        givers = _givers(sizes)
        sizes[sizes == 0] = 1
        np.subtract.at(sizes, givers, 1)
        dealt = rng.permutation(len(clips)), sizes
    else:
        statistic = texture if partition == "texture" else motion
        order = np.argsort([statistic(clip) for clip in clips], kind="stable")
        dealt = order, _even(len(order), num_clients)
    return dealt if clips_per_client is None else _keep(*dealt, clips_per_client, seed)


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


def _even(total: int, num_parts: int) -> _Ints:
    """Numbers that differ by at most one, the larger ones first."""
    return total // num_parts + (np.arange(num_parts) < total % num_parts).astype(np.int64)


def _round_robin(order: _Ints, num_clients: int) -> _Shares:
    """Client i has every `num_clients`-th index from the i-th on."""
    return _grouped(order, np.arange(len(order)) % num_clients, num_clients)


def _grouped(indices: _Ints, owners: _Ints, num_clients: int) -> _Shares:
    """Indices by their owners; those of one owner keep their order."""
    order = np.argsort(owners, kind="stable")
    return indices[order], np.bincount(owners, minlength=num_clients)


def _by_label(
    clips: ClipTable, num_clients: int, rng: np.random.Generator, setting: str
) -> _Shares:
    labels, codes = clips.labels()
    if len(labels) == 1 < num_clients:
        raise UserError(
            f"data.partition = more deals clips by their labels, and all have the label "
            f"{labels[0]}; set data.partition = less"
        )
    order = rng.permutation(len(labels))
    owners = np.empty(len(clips), np.int64)
    if len(labels) >= num_clients:
        owner_of = np.empty(len(labels), np.int64)
        owner_of[order] = np.arange(len(labels)) % num_clients
        owners = owner_of[codes]
    else:
        # One label per client: client i has a part of the clips of the i-th label in this order.
        for first, code in enumerate(order.tolist()):
            own = rng.permutation(np.flatnonzero(codes == code))
            sharing = np.arange(first, num_clients, len(labels))
            if len(own) < len(sharing):
                raise UserError(
                    f"data.partition = more gives every client one label, and {labels[code]} has "
                    f"{len(own)} clips for {len(sharing)} of {setting} = {num_clients}; lower it, "
                    "or add clips"
                )
            owners[own] = sharing[np.arange(len(own)) % len(sharing)]
    return _grouped(np.arange(len(clips)), owners, num_clients)


def _by_folder(clips: ClipTable, num_clients: int, setting: str) -> _Shares:
    labels, codes = clips.labels()
    if len(labels) != num_clients:
        raise UserError(
            f"data.partition = by_folder makes a client of each of the {len(labels)} folders "
            f"(labels) of the training clips; set {setting} = {len(labels)}"
        )
    order = sorted(range(len(labels)), key=lambda code: natural(labels[code]))
    client_of = np.empty(len(labels), np.int64)
    client_of[order] = np.arange(len(labels))
    return _grouped(np.arange(len(clips)), client_of[codes], num_clients)


def _dirichlet(
    clips: ClipTable, num_clients: int, alpha: float, rng: np.random.Generator
) -> _Shares:
    labels, codes = clips.labels()
    indices, owners = list[_Ints](), list[_Ints]()
    for code in range(len(labels)):
        own = rng.permutation(np.flatnonzero(codes == code))
        sizes = _sizes(len(own), rng.dirichlet([alpha] * num_clients))
        indices.append(own)
        owners.append(np.repeat(np.arange(num_clients), sizes))
    order, counts = _grouped(np.concatenate(indices), np.concatenate(owners), num_clients)
    # A client without clips cannot train, so it gets the last one of the client that has most.
    empty, givers = np.flatnonzero(counts == 0), _givers(counts)
    owner = np.repeat(np.arange(num_clients), counts)
    ends = np.cumsum(counts)
    for client_id, giver in zip(empty.tolist(), givers, strict=True):
        ends[giver] -= 1
        owner[ends[giver]] = client_id
    return _grouped(order, owner, num_clients)


def _sizes(total: int, parts: npt.NDArray[np.float64]) -> _Ints:
    """Split `total` into whole numbers in proportion to `parts`, by largest remainders."""
    exact = total * parts
    sizes = np.floor(exact).astype(np.int64)
    most = np.argsort(sizes - exact, kind="stable")[: total - sizes.sum()]
    sizes[most] += 1
    return sizes


def _givers(sizes: _Ints) -> list[int]:
    """For each share of size 0, in order, the share that is then the largest and gives it one."""
    largest = [(-size, i) for i, size in enumerate(sizes.tolist()) if size > 1]
    heapify(largest)
    givers = list[int]()
    for _ in range(int((sizes == 0).sum())):
        size, giver = largest[0]
        givers.append(giver)
        heapreplace(largest, (size + 1, giver))
    return givers


def _keep(order: _Ints, counts: _Ints, count: int, seed: int) -> _Shares:
    """Only `count` clips of each client, drawn at random."""
    kept = list[_Ints]()
    for client_id, share in enumerate(np.split(order, np.cumsum(counts)[:-1])):
        if len(share) < count:
            raise UserError(
                f"data.clips_per_client = {count}, but client {client_id} gets only {len(share)}; "
                "lower it, or add clips"
            )
        drawn = generator(seed, "partition", client_id).permutation(len(share))[:count]
        kept.append(share[np.sort(drawn)])
    return np.concatenate(kept), np.full(len(counts), count)
