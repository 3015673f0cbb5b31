"""What is done to a client's change of the parameters before it travels: clipping, compression.

P is the number of parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedvsr.errors import UserError
from fedvsr.messages import Packed
from fedvsr.params import FloatVector
from fedvsr.section import Section

# Values that share a scale: 4 bytes in 1024, and an outlier coarsens no more than its neighbours.
_BLOCK = 1024


class UpdateConfig(Section):
    """What is done to updates on their way from clients to the global network: nothing."""

    reject_nonfinite: bool = Field(
        False,
        description="Go on without clients whose loss or update is not finite, and record them "
        "(default: stop there).",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Largest L2 norm of a client's change; longer ones are scaled."
    )
    noise_multiplier: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Standard deviation of the Gaussian noise on the sum of changes, in units of "
        "clip_norm: central differential privacy (needs the extra `privacy`).",
    )
    delta: float | None = Field(
        None, gt=0, lt=1, description="Delta of epsilon (default: num_clients ** -1.1)."
    )
    compression: Literal["none", "int8", "top_k"] = Field(
        "none",
        description="Of a client's change: int8, a scale to 1024 values; or its top_k values.",
    )
    top_k: float = Field(
        0.01, gt=0, le=1, description="top_k: the part of all values that is sent, by magnitude."
    )
    error_feedback: bool = Field(
        True,
        description="Let clients remember what compression left out, and add it to their next "
        "change (Seide et al. 2014).",
    )

    def model_post_init(self, _: object) -> None:
        """Check what one field alone cannot show."""
        if self.noise_multiplier and self.clip_norm is None:
            raise UserError("update.noise_multiplier needs update.clip_norm, which bounds a client")
        if self.noise_multiplier and self.compression != "none":
            raise UserError(
                "update.compression changes a client's norm after clipping, so it does not go with "
                "update.noise_multiplier"
            )

    @property
    def active(self) -> bool:
        """Whether a change is anything but passed on."""
        return self.clip_norm is not None or self.compression != "none"


UNCHANGED = UpdateConfig()
"""Updates travel as they are."""


@dataclass(frozen=True)
class Int8:
    """A vector in blocks of 1024 values, each with a scale."""

    codes: npt.NDArray[np.int8]
    """(P,), from -127 to 127."""
    scales: FloatVector
    """A step of each block's codes."""

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
    """The values of largest magnitude of a vector."""

    indices: npt.NDArray[np.int32]
    """(k,), rising."""
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
    """Quantise: every value to the nearest of 255 steps between its block's extremes."""
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
    """What a client sends of its training, and the residual that it remembers.

    Args:
        params: after training, (P,), finite.
        begin: the global parameters (P,) that it began from.
        residual: what compression left out of the changes before; None for nothing.
        config: what to do.

    Returns:
        Parameters (P,), or the compressed change of them; and the new residual, if there is one.
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
    """The parameters (P,) that a client sent, whatever their form."""
    return upload if isinstance(upload, np.ndarray) else begin + upload.unpack()
