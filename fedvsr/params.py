"""A network's parameters as one flat float32 vector, with a table of names and shapes.

Only parameters travel. Buffers are constants of an architecture (index tables, the flow network's
normalisation), which its constructor creates. P is the number of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedvsr.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

FloatVector = npt.NDArray[np.float32]

# 1 MiB of products fits in the second-level cache, so a sum reads and writes main memory once.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class ParamTable:
    """Names and shapes of the parameters in a flat vector, in the module's order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> ParamTable:
        """The table of `module`."""
        entries = list(module.named_parameters())
        return cls(tuple(n for n, _ in entries), tuple(tuple(p.shape) for _, p in entries))

    @property
    def size(self) -> int:
        """P, the number of float32 values."""
        return sum(math.prod(shape) for shape in self.shapes)

    def views(self, vector: FloatVector) -> dict[str, FloatVector]:
        """Named views into `vector` (P,), sharing its memory."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        parts = np.split(vector, ends[:-1])
        return {n: p.reshape(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def slices(self) -> tuple[slice, ...]:
        """The slice of a vector that each tensor takes."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes]).tolist()
        return tuple(map(slice, [0, *ends[:-1]], ends))

    def require_equal(self, other: ParamTable, whose: str) -> None:
        """Check that two tables agree.

        Args:
            other: the other table.
            whose: what it belongs to, for the message.

        Raises:
            UserError: the tables differ; the message names the first tensor that does.
        """
        mine = list(zip(self.names, self.shapes, strict=True))
        theirs = list(zip(other.names, other.shapes, strict=True))
        for i in range(max(len(mine), len(theirs))):
            own_entry = mine[i] if i < len(mine) else None
            other_entry = theirs[i] if i < len(theirs) else None
            if own_entry != other_entry:
                raise UserError(
                    f"{whose} do not fit the network: tensor {i} is {_describe(other_entry)} there "
                    f"and {_describe(own_entry)} in the network"
                )


def flatten(module: nn.Module, out: FloatVector | None = None) -> FloatVector:
    """Copy the parameters of `module` into a vector (P,): `out`, or a new one."""
    return join_tensors(list(module.parameters()), out)


def load_flat(module: nn.Module, vector: FloatVector) -> None:
    """Copy `vector` (P,) into the parameters of `module`; `vector` may be read-only.

    Raises:
        ValueError: the sizes differ.
    """
    load_params(list(module.parameters()), vector)


def load_params(params: Sequence[nn.Parameter], vector: FloatVector) -> None:
    """Copy `vector` into some parameters, one after the other; `vector` may be read-only.

    Raises:
        ValueError: the sizes differ.
    """
    import torch

    sizes = [parameter.numel() for parameter in params]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"{vector.shape} values for {sum(sizes)} parameters")
    start = 0
    with torch.no_grad():
        for parameter, size in zip(params, sizes, strict=True):
            part = vector[start : start + size].reshape(parameter.shape)
            # NumPy copies it: torch warns about the object store's read-only memory.
            if parameter.device.type == "cpu":
                np.copyto(parameter.numpy(), part)
            else:
                parameter.copy_(torch.from_numpy(part.copy()))
            start += size


def wipe(params: Iterable[nn.Parameter]) -> None:
    """Set parameters to zero, and drop their gradients."""
    import torch

    with torch.no_grad():
        for parameter in params:
            parameter.grad = None
            parameter.zero_()


def weighted_sum(vectors: Iterable[FloatVector], weights: Sequence[float]) -> FloatVector:
    """Sum `weights[i] * vectors[i]` in float32, in the given order, in one accumulator (P,).

    The function lets go of a vector before it reads the next, so with an iterable that fetches
    them, memory holds two vectors. The order decides the result, because float addition is not
    associative.

    Raises:
        ValueError: there are no vectors, or their number differs from that of the weights.
    """
    # Not a generator expression: its variable would hold a vector until it has the next one.
    return weighted_sums(map(_named_sum, vectors), {"sum": weights})["sum"]


def _named_sum(vector: FloatVector) -> dict[str, FloatVector]:
    return {"sum": vector}


def weighted_sums(
    sets: Iterable[Mapping[str, FloatVector]], weights: Mapping[str, Sequence[float]]
) -> dict[str, FloatVector]:
    """Compute several weighted sums in one pass over sets of vectors; see `weighted_sum`.

    Args:
        sets: sets of vectors (P,) by name.
        weights: for each name to sum, a weight for every set.

    Raises:
        ValueError: there are no sets, or their number differs from that of the weights.
    """
    totals = dict[str, FloatVector]()
    scratch = np.empty(_CHUNK, np.float32)
    rows = [dict(zip(weights, row, strict=True)) for row in zip(*weights.values(), strict=True)]
    count = 0
    for vectors in sets:
        if count == len(rows):
            raise ValueError(f"more than {count} sets of vectors for {count} weights")
        for name, weight in rows[count].items():
            _add(totals, name, vectors[name], weight, scratch)
        count += 1
        # Else it would be held until the next one has come.
        del vectors
    if count < len(rows):
        raise ValueError(f"{count} sets of vectors for {len(rows)} weights")
    if not totals:
        raise ValueError("a weighted sum needs at least one vector")
    return totals


def _add(
    totals: dict[str, FloatVector],
    name: str,
    vector: FloatVector,
    weight: float,
    scratch: FloatVector,
) -> None:
    """Add `weight * vector` to the named total, which is made on first use."""
    first = name not in totals
    if first:
        totals[name] = np.empty_like(vector)
    for start in range(0, vector.size, _CHUNK):
        part = vector[start : start + _CHUNK]
        total = totals[name][start : start + _CHUNK]
        product = np.multiply(part, np.float32(weight), out=scratch[: part.size])
        # A sum starts from +0, without a pass that would write zeros.
        np.add(np.float32(0) if first else total, product, out=total)


def distance(one: FloatVector, other: FloatVector) -> float:
    """Compute the L2 norm of the difference of two vectors (P,).

    Chunks are summed in float32, and their sums in float64.
    """
    squares = 0.0
    # A value beyond float32's range becomes infinite; callers report that.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, one.size, _CHUNK):
            difference = one[start : start + _CHUNK] - other[start : start + _CHUNK]
            squares += float(np.dot(difference, difference))
    return math.sqrt(squares)


def all_finite(vector: FloatVector) -> bool:
    """Whether no value of a vector (P,) is infinite or NaN."""
    # An infinite value or NaN makes the sum so, and a sum needs no second vector. Finite values may
    # overflow in it, so they are then checked one by one.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(vector.sum()) or np.isfinite(vector).all())


def split_tensors(params: Sequence[nn.Parameter], vector: FloatVector) -> list[Tensor]:
    """Copies of the values in `vector`, a tensor for each of `params`, on its device."""
    import torch

    ends = np.cumsum([parameter.numel() for parameter in params])
    return [
        torch.tensor(part.reshape(parameter.shape), device=parameter.device)
        for part, parameter in zip(np.split(vector, ends[:-1]), params, strict=True)
    ]


def split_rows(params: Sequence[nn.Parameter], vectors: FloatVector) -> list[Tensor]:
    """`split_tensors` for K vectors one after the other: tensors `(K, *shape)`; K may be 0."""
    import torch

    ends = np.cumsum([parameter.numel() for parameter in params])
    rows = vectors.reshape(-1, int(ends[-1]))
    return [
        torch.tensor(part.reshape(len(rows), *parameter.shape), device=parameter.device)
        for part, parameter in zip(np.split(rows, ends[:-1], axis=1), params, strict=True)
    ]


def join_tensors(tensors: Sequence[Tensor], out: FloatVector | None = None) -> FloatVector:
    """The inverse of `split_tensors`: a vector (P,), `out` or a new one."""
    import torch

    # NumPy allocates huge pages; torch's small pages take five times as long, all in page faults.
    vector = np.empty(sum(t.numel() for t in tensors), np.float32) if out is None else out
    start = 0
    for tensor in tensors:
        part = torch.from_numpy(vector[start : start + tensor.numel()])
        part.copy_(tensor.detach().reshape(-1))
        start += tensor.numel()
    return vector


def _describe(entry: tuple[str, tuple[int, ...]] | None) -> str:
    return "missing" if entry is None else f"{entry[0]} {list(entry[1])}"
