"""The `data` section: which clips there are, and how they are dealt to clients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.errors import UserError
from fedvsr.section import Section

Partition = Literal["less", "more", "by_folder", "dirichlet", "quantity", "motion", "texture"]

# Wang et al. 2019 (EDVR): the four clips of REDS that the field scores on.
REDS4 = ("000", "011", "015", "020")


class DataConfig(Section):
    """Which clips, and how they are dealt to clients."""

    videos: list[str] = Field(
        [],
        description="Video files, cut into clips at the first run; `package:NAME/FILE` is a file "
        "inside an installed package.",
    )
    train: list[str] = Field(
        [],
        description="Or data sets to train on: folders that `fedvsr data prepare` wrote, or of "
        "videos or frames, which are then cut at the first run.",
    )
    test: list[str] = Field([], description="Data sets to score on, prepared alike.")
    held_out: list[str] | Literal["reds4"] = Field(
        [],
        description="Clips of `train` to score on instead of training on them, by id; reds4 is "
        f"{', '.join(REDS4)}.",
    )
    max_train_clips: int | None = Field(
        None, ge=1, description="Train on the first so many clips, in order of their ids."
    )
    scale: int = Field(4, ge=2, le=8, description="Reduction of the training input.")
    clip_frames: int = Field(
        11, ge=1, le=1000, description="videos: frames of a clip; no frame is in two."
    )
    max_clips_per_video: int | None = Field(
        None, ge=1, description="videos: cut no more clips than this from one (default: all)."
    )
    test_clips_per_video: int = Field(
        1, ge=1, description="videos: the last clips of each, held out for evaluation."
    )
    num_clients: int = Field(8, ge=1, le=1_000_000, description="Clients the rest is dealt to.")
    partition: Partition = Field(
        "less",
        description="How: less, at random; more, a label a client (the paper's two settings); "
        "by_folder, a client for every label, in the labels' order; dirichlet, labels by "
        "Dirichlet(alpha); quantity, counts by Dirichlet(alpha); motion or texture, clips alike in "
        "that to the same client.",
    )
    alpha: float = Field(
        0.5, gt=0, le=1e6, description="Of Dirichlet; smaller is more heterogeneous."
    )
    clips_per_client: int | None = Field(
        None, ge=1, description="Deal so many clips to each client (default: all there are)."
    )
    allow_overlap: bool = Field(
        False, description="Train on test clips all the same; every record then says so."
    )
    cache_dir: str | None = Field(
        None, description="Where cut clips are kept (default: ~/.cache/fedvsr)."
    )

    def model_post_init(self, _: object) -> None:
        """Check what one field alone cannot show."""
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
