"""Clips that stay with their owners: only numbers leave an owner's nodes, and only these open them.

A process on a node of the owner reads the owner's stores and deals their clips (`deal_own`). It
returns each clip's number and size. With them the driver plans; a client's process, which is on a
node of the owner too, finds the clip of a number again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from fedvsr.data.client_clips import ClipTable
from fedvsr.data.clips import Clip
from fedvsr.data.config import DataConfig, OwnerConfig
from fedvsr.data.owned_clip import OwnedClip, read_stores
from fedvsr.data.owners import Owners
from fedvsr.data.split import Split, deal_as, key_of, require_no_overlap
from fedvsr.errors import UserError
from fedvsr.seeding import derive_seed


@dataclass(frozen=True)
class Dealt:
    """All that leaves an owner's nodes before training."""

    clients: tuple[tuple[tuple[int, int, int, int, str], ...], ...]
    """For each of the owner's clients its clips: number, frames, height, width, degradation."""
    tested: frozenset[str]
    """Keys of test clips that are among them, see `fedvsr.data.split`."""


def deal_own(
    name: str, owner: OwnerConfig, config: DataConfig, seed: int, tests: Collection[str]
) -> Dealt:
    """Read an owner's stores and deal their clips; runs on a node of the owner.

    Args:
        name: the owner.
        owner: its stores, and the number of its clients.
        config: the `data` section, for how to deal.
        seed: the experiment's.
        tests: keys of the test clips.

    Raises:
        UserError: a store is missing here, has another scale, or there are too few clips.
    """
    clips = ClipTable.of(read_stores(owner.train))
    if other := next((clip for clip in clips if clip.scale != config.scale), None):
        raise UserError(
            f"a store of data.owners.{name} was prepared with --scale {other.scale}, and "
            f"data.scale = {config.scale}; make them equal"
        )
    # One client has them all, however clips would be dealt.
    how = config if owner.clients > 1 else config.model_copy(update={"partition": "less"})
    own_seed = derive_seed(seed, "owner", name)
    numbers, counts = deal_as(how, clips, owner.clients, own_seed, f"data.owners.{name}.clients")
    dealt = clips.take(numbers)
    # Names of other clips may be the same by chance, so a name counts only without a checksum.
    keys = {clip.sha256 or next(iter(key_of(clip))) for clip in dealt}
    facts = (
        (number, clip.num_frames, clip.height, clip.width, clip.degradation)
        for number, clip in zip(numbers.tolist(), dealt, strict=True)
    )
    clients = tuple(tuple(islice(facts, count)) for count in counts.tolist())
    return Dealt(clients, frozenset(keys & set(tests)))


def deal_here(config: DataConfig, seed: int, tests: Collection[str]) -> dict[str, Dealt]:
    """Deal the clips of all owners in this process, which must be able to read them all."""
    try:
        return {
            name: deal_own(name, owner, config, seed, tests)
            for name, owner in config.owners.items()
        }
    except UserError as error:
        raise UserError(
            f"{error} (without Ray, the data of every owner is read on this machine)"
        ) from None


def with_owners(split: Split, config: DataConfig, dealt: Mapping[str, Dealt]) -> Split:
    """A split without the owners' clips, with them.

    Args:
        split: of `fedvsr.data.split.prepare`.
        config: the `data` section.
        dealt: what each owner's node returned.

    Raises:
        UserError: an owner has test clips, and `data.allow_overlap` is not set.
    """
    clients = list[tuple[Clip, ...]]()
    for name in Owners.in_config(config).names:
        stores = tuple(config.owners[name].train)
        clients += (
            tuple(_known(name, stores, config.scale, *clip) for clip in own)
            for own in dealt[name].clients
        )
    tested = frozenset[str]().union(*(one.tested for one in dealt.values()))
    overlap = tuple(clip.clip_id for clip in split.test if key_of(clip) & tested)
    require_no_overlap(overlap, config)
    return replace(split, clients=tuple(clients), overlap=overlap)


def _known(
    owner: str,
    stores: tuple[str, ...],
    scale: int,
    number: int,
    num_frames: int,
    height: int,
    width: int,
    degradation: str,
) -> OwnedClip:
    """What is known of a clip elsewhere: its owner is its label, and its number names it."""
    clip_id = f"{owner}-{number:04d}"
    return OwnedClip(
        clip_id,
        owner,
        "",
        num_frames,
        height,
        width,
        scale,
        degradation=degradation,
        stores=stores,
        number=number,
    )
