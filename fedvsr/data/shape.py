"""What a training sample is made of. Loads no torch: the configuration imports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ends = Literal["redraw", "mirror"]


@dataclass(frozen=True)
class SampleShape:
    """Frames, crop and augmentation of a sample; `LocalConfig` describes the settings."""

    num_frames: int
    crop: int
    """Height and width of the ground-truth crop, a multiple of the clips' scale."""
    interval: int = 1
    ends: Ends = "redraw"
    augment: bool = False
    random_reverse: bool = False
    mirror: bool = False

    @property
    def span(self) -> int:
        """Frames of a clip from a sample's first to its last."""
        return (self.num_frames - 1) * self.interval + 1
