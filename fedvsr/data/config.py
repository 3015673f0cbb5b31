"""The `data` section: the clips, and how they are dealt to clients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedvsr.data.degrade_config import READY, Degradation, pipelines, require_scale
from fedvsr.errors import UserError
from fedvsr.section import NAME, OnlyWith, Section

Partition = Literal["less", "more", "by_folder", "dirichlet", "quantity", "motion", "texture"]

# The four clips of REDS that are customarily scored on (Wang et al. 2019, EDVR).
REDS4 = ("000", "011", "015", "020")

# The number of a clip in its recording, at the end of its id.
PART_NUMBER = r"[0-9]{3,}"
_PART = re.compile(rf"(.+)-({PART_NUMBER})")
# Settings that choose among the clips of `train` before they are dealt.
_OF_TRAIN = ("held_out", "gap_clips", "max_train_clips")
# What Ray takes as a label: no `!` and no `in(...)`, which have a meaning in its selectors.
_WORD = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LabelName = Annotated[str, Field(pattern=rf"^([A-Za-z0-9.-]+/)?{_WORD}$")]
_LabelValue = Annotated[str, Field(pattern=rf"^{_WORD}$")]


def video_of(clip_id: str) -> tuple[str, int]:
    """The recording that a clip of this id is cut from, and its number there."""
    part = _PART.fullmatch(clip_id)
    return (part[1], int(part[2])) if part else (clip_id, 0)


def is_named(clip_id: str, name: str) -> bool:
    """Whether an entry of `data.held_out` names a clip: by its id, its video or a pattern."""
    return name in (clip_id, video_of(clip_id)[0]) or fnmatchcase(clip_id, name)


class OwnerConfig(Section):
    """An owner's nodes, the clip stores that stay there, and the clients that train on them."""

    nodes: dict[_LabelName, _LabelValue] = Field(
        min_length=1,
        description="Labels of the owner's nodes, as `ray start --labels` gives them. The owner's "
        "clients train on nodes that have all of these labels, and nowhere else.",
    )
    train: list[str] = Field(
        min_length=1,
        description="Clip stores that `fedvsr data prepare` made, by their absolute paths on the "
        "owner's nodes. No other node opens them.",
    )
    clients: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="Clients that the owner's clips are dealt to, by data.partition.",
    )

    def model_post_init(self, _: object) -> None:
        """Refuse relative paths, which begin elsewhere on another node."""
        for path in self.train:
            if not path.startswith(("/", "~/")):
                raise UserError(f"{path} is relative; give the path on the owner's nodes from /")


class DataConfig(Section):
    """The clips, and how they are dealt to clients."""

    videos: list[str] = Field(
        [],
        description="Video files, cut into clips at the first run; `package:NAME/FILE` is a file "
        "inside an installed package.",
    )
    train: list[str] = Field(
        [],
        description="Data sets to train on, instead of `videos`: clip stores that `fedvsr data "
        "prepare` made, or folders of videos or pictures, which are cut at the first run.",
    )
    owners: dict[Annotated[str, Field(pattern=NAME, max_length=64)], OwnerConfig] = Field(
        {},
        description="Owners whose clips stay on their own nodes, by name, instead of `train`. "
        "Clients are numbered by the owners' names in alphabetical order.",
    )
    test: list[str] = Field(
        [], description="Data sets to score on, of the same kinds as in `train`."
    )
    held_out: list[str] | Literal["reds4"] = Field(
        [],
        description="Clips of `train` that are scored on and not trained on: ids, names of whole "
        "videos (alice-a: alice-a-000 and so on), or patterns (alice-*); reds4 means "
        f"{', '.join(REDS4)}.",
    )
    gap_clips: int = Field(
        0,
        ge=0,
        le=1000,
        description="Clips on either side of a held-out clip, in the same video, that are neither "
        "trained nor scored on, because neighbours are nearly alike.",
    )
    max_train_clips: int | None = Field(
        None, ge=1, description="Train on at most this many clips, the first by their ids."
    )
    scale: int = Field(
        4,
        ge=1,
        le=8,
        description="Factor by which low-resolution frames are smaller; 1 restores frames without "
        "enlarging them.",
    )
    degradation: Degradation | None = Field(
        None,
        description="How low-resolution frames are made of the ground truth: the name of a "
        f"ready-made pipeline ({', '.join(READY)}), a list of steps, or several of these by names "
        "of your own, {NAME: PIPELINE}, which are dealt to clients and all scored (default: as the "
        "clips were prepared).",
    )
    degradation_seed: Annotated[int, OnlyWith("degradation")] = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of what a pipeline draws; not the run's, so that runs of other seeds are "
        "scored on the same frames.",
    )
    deal_degradations: Annotated[Literal["client", "dirichlet"], OnlyWith("degradation")] = Field(
        "client",
        description="How several degradations are dealt: client, one per client, each to as many "
        "clients; dirichlet, a client's shares of them by Dirichlet(degradation_alpha).",
    )
    degradation_alpha: Annotated[float, OnlyWith("deal_degradations", "dirichlet")] = Field(
        0.5,
        gt=0,
        le=1e6,
        description="Concentration of `deal_degradations: dirichlet`; smaller is more uneven.",
    )
    clip_frames: int = Field(
        11,
        ge=1,
        le=1000,
        description="Frames per clip when videos or folders are cut; no frame is in two clips.",
    )
    max_clips_per_video: Annotated[int | None, OnlyWith("videos")] = Field(
        None, ge=1, description="Cut at most this many clips from each of `videos` (default: all)."
    )
    test_clips_per_video: Annotated[int, OnlyWith("videos")] = Field(
        1, ge=1, description="Clips held out for scoring at the end of each of `videos`."
    )
    num_clients: int = Field(
        8, ge=1, le=1_000_000, description="Clients that the training clips are dealt to."
    )
    partition: Partition = Field(
        "less",
        description="How clips are dealt to clients: less, at random; more, one label per client, "
        "which several share if there are fewer labels than clients (the paper's two settings); "
        "by_folder, one client per label, in the labels' order; dirichlet, shares of each label by "
        "Dirichlet(alpha); quantity, numbers of clips by Dirichlet(alpha); motion or texture, "
        "clips with similar motion or texture together.",
    )
    alpha: Annotated[float, OnlyWith("partition", "dirichlet", "quantity")] = Field(
        0.5,
        gt=0,
        le=1e6,
        description="Concentration of `dirichlet` and `quantity`; smaller is more heterogeneous.",
    )
    clips_per_client: int | None = Field(
        None, ge=1, description="Clips per client, drawn at random from its share (default: all)."
    )
    allow_overlap: bool = Field(
        False, description="Allow training on test clips; every record then shows it."
    )
    cache_dir: str | None = Field(
        None, description="Folder for cut clips (default: ~/.cache/fedvsr)."
    )

    @model_validator(mode="before")
    @classmethod
    def _count_clients(cls, values: Any) -> Any:
        """Fill in `num_clients`, which the owners' clients decide."""
        owners = values.get("owners") if isinstance(values, Mapping) else None
        if not owners or not isinstance(owners, Mapping) or "num_clients" in values:
            return values
        each = [
            owner.get("clients", 1) if isinstance(owner, Mapping) else getattr(owner, "clients", 1)
            for owner in owners.values()
        ]
        # Other values are refused by the owner's own section.
        return {**values, "num_clients": sum(n for n in each if isinstance(n, int)) or 1}

    def model_post_init(self, _: object) -> None:
        """Check settings that depend on each other."""
        if self.owners:
            self._require_owners_alone()
            return
        if not self.videos and not self.train:
            raise UserError(
                "data.videos is missing: give files to cut by --set data.videos=[...], or prepared "
                "data sets by data.train"
            )
        if self.videos and self.train:
            raise UserError("data.videos and data.train exclude each other; prepare the videos too")
        if self.videos and (self.test or self.held_out):
            raise UserError(
                "data.test and data.held_out go with data.train; data.videos holds out the last "
                "clips of each (data.test_clips_per_video)"
            )
        if self.train and not (self.test or self.held_out):
            raise UserError(
                "data.train needs clips to score on: name data sets in data.test, or clips in "
                "data.held_out"
            )
        if self.degradation is not None:
            try:
                require_scale(pipelines(self.degradation), self.scale)
            except ValueError as error:
                raise UserError(f"data.degradation: {error}") from None
        elif self.scale == 1:
            raise UserError(
                "data.scale = 1 leaves low-resolution frames equal to the ground truth: say by "
                "data.degradation what is to be restored, e.g. compressed"
            )

    def _why_unused(self, name: str, values: Mapping[str, object], path: str) -> str | None:
        if values["owners"] and name in _OF_TRAIN:
            return f"{path}owners is set, and {name} chooses among the clips of {path}train"
        return super()._why_unused(name, values, path)

    def _require_owners_alone(self) -> None:
        """Check what `owners` excludes and needs."""
        if self.videos or self.train:
            raise UserError(
                "data.owners excludes data.train and data.videos; name the clip stores of each "
                "owner in data.owners.NAME.train"
            )
        if not self.test:
            raise UserError(
                "data.owners needs clips to score on that the scorer may read: name data sets in "
                "data.test"
            )
        if self.degradation is not None:
            raise UserError(
                "data.degradation does not reach the clips of data.owners, whose low-resolution "
                "frames are those of their stores; leave one of them out"
            )
        total = sum(owner.clients for owner in self.owners.values())
        if self.num_clients != total:
            raise UserError(
                f"data.num_clients = {self.num_clients}, but the owners of data.owners have "
                f"{total} clients; set it to {total}"
            )
