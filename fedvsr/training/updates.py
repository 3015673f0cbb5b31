"""A client's update on its way to the server: clipping and compression.

An update is the change that training made to the parameters. P is the number of parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedvsr.errors import UserError
from fedvsr.messages import Packed
from fedvsr.params import FloatVector
from fedvsr.section import OnlyWith, Section

# Values that share a scale, which adds 4 bytes to 1024; an outlier coarsens only its own block.
_BLOCK = 1024


class UpdateConfig(Section):
    """Privacy, compression and rejection of updates; by default they travel unchanged."""

    reject_nonfinite: bool = Field(
        False,
        description="Leave out clients whose loss or update is not finite, and record them "
        "(default: stop the run).",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Bound on the L2 norm of a client's update; longer ones are scaled."
    )
    noise_multiplier: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Standard deviation of the Gaussian noise on the sum of updates, in units of "
        "clip_norm: central differential privacy (needs the extra `privacy`).",
    )
    delta: Annotated[float | None, OnlyWith("noise_multiplier", above=0)] = Field(
        None,
        gt=0,
        lt=1,
        description="Delta for which epsilon is reported (default: num_clients ** -1.1).",
    )
    compression: Literal["none", "int8", "top_k"] = Field(
        "none",
        description="How updates are compressed: int8, with a scale per 1024 values; or top_k, the "
        "values of largest magnitude alone.",
    )
    top_k: Annotated[float, OnlyWith("compression", "top_k")] = Field(
        0.01, gt=0, le=1, description="top_k: part of all values that is sent."
    )
    error_feedback: Annotated[bool, OnlyWith("compression", "int8", "top_k")] = Field(
        True,
        description="Let clients remember what compression left out, and add it to their next "
        "update (Seide et al. 2014).",
    )

    secure_sum: bool = Field(
        False,
        description="Mask what clients send, so that the server reads only the sum of a round's "
        "updates (needs the extra `privacy`).",
    )
    secure_range: Annotated[float, OnlyWith("secure_sum"), OnlyWith("clip_norm", None)] = Field(
        1.0,
        gt=0,
        le=1e6,
        description="secure_sum: the most by which a client's training may change a value in a "
        "round; a larger change ends the run. With clip_norm, that is the bound.",
    )

    def model_post_init(self, _: object) -> None:
        """Check what one field alone cannot show."""
        if self.secure_sum and self.compression != "none":
            raise UserError(
                f"update.compression = {self.compression} makes updates of another form, which "
                "cannot be summed under the masks of update.secure_sum; leave one out"
            )
        if self.noise_multiplier and self.clip_norm is None:
            raise UserError(
                "update.noise_multiplier needs update.clip_norm, which bounds a client's influence"
            )
        if self.noise_multiplier and self.compression != "none":
            raise UserError(
                "update.compression changes an update's norm after clipping, so it cannot be "
                "combined with update.noise_multiplier; leave one out"
            )

    @property
    def active(self) -> bool:
        """Whether updates are modified at all."""
        return self.clip_norm is not None or self.compression != "none"

    @property
    def range(self) -> float:
        """The most by which a client may change a value, under `secure_sum`."""
        return self.secure_range if self.clip_norm is None else self.clip_norm


UNCHANGED = UpdateConfig()
"""The settings under which updates travel unchanged."""


@dataclass(frozen=True)
class Int8:
    """A vector quantised to 8 bits, with a scale per block of 1024 values."""

    codes: npt.NDArray[np.int8]
    """(P,), from -127 to 127."""
    scales: FloatVector
    """What a step of 1 in the codes is worth, by block."""

    @property
    def nbytes(self) -> int:
        """Size on the wire."""
        return self.codes.nbytes + self.scales.nbytes

    def unpack(self) -> FloatVector:
        """The vector (P,)."""
        steps = np.repeat(self.scales, _BLOCK)[: self.codes.size]
        values: FloatVector = self.codes * steps
        return values


@dataclass(frozen=True)
class TopK:
    """A vector's values of largest magnitude, and where they are."""

    indices: npt.NDArray[np.int32]
    """(k,), ascending."""
    values: FloatVector
    """(k,)."""
    size: int
    """P."""

    @property
    def nbytes(self) -> int:
        """Size on the wire."""
        return self.indices.nbytes + self.values.nbytes

    def unpack(self) -> FloatVector:
        """The vector (P,), zero elsewhere."""
        vector = np.zeros(self.size, np.float32)
        vector[self.indices] = self.values
        return vector


def to_int8(vector: FloatVector) -> Int8:
    """Quantise every value to the nearest of 255 steps, scaled by its block's largest one."""
    padded = np.zeros(-(-vector.size // _BLOCK) * _BLOCK, np.float32)
    padded[: vector.size] = vector
    blocks = padded.reshape(-1, _BLOCK)
    scales = np.abs(blocks).max(axis=1) / np.float32(127)
    steps = np.where(scales > 0, scales, np.float32(1))
    codes = np.rint(blocks / steps[:, None]).astype(np.int8).reshape(-1)[: vector.size]
    return Int8(codes, scales)


def to_top_k(vector: FloatVector, share: float) -> TopK:
    """Keep the `ceil(share * P)` values of largest magnitude."""
    count = math.ceil(share * vector.size)
    largest = np.argpartition(np.abs(vector), vector.size - count)[vector.size - count :]
    indices = np.sort(largest).astype(np.int32)
    return TopK(indices, vector[indices], vector.size)


def outgoing(
    params: FloatVector, begin: FloatVector, residual: FloatVector | None, config: UpdateConfig
) -> tuple[FloatVector | Packed, FloatVector | None]:
    """Clip and compress a client's update as configured.

    Args:
        params: the parameters (P,) after training, finite.
        begin: the global parameters (P,) from which training started.
        residual: what compression left out of earlier updates; None for nothing.
        config: how to clip and compress.

    Returns:
        What to send, parameters (P,) or a compressed update; and the new residual to remember, or
        None.
    """
    if not config.active:
        return params, None
    change = params - begin
    if config.clip_norm is not None:
        norm = math.sqrt(np.dot(change.astype(np.float64), change))
        change *= np.float32(min(1.0, config.clip_norm / norm)) if norm else np.float32(1)
    if config.compression == "none":
        return begin + change, None
    if residual is not None:
        change += residual
    packed: Packed = (
        to_int8(change) if config.compression == "int8" else to_top_k(change, config.top_k)
    )
    return packed, change - packed.unpack() if config.error_feedback else None


def incoming(upload: FloatVector | Packed, begin: FloatVector) -> FloatVector:
    """The parameters (P,) that a client sent, uncompressed; `begin` are the global ones."""
    return upload if isinstance(upload, np.ndarray) else begin + upload.unpack()
