"""Secure sums: clients mask their updates, so that the server reads the sum of a round alone.

The pairwise masks of Bonawitz et al., Practical Secure Aggregation, CCS 2017, without the recovery
of masks: if a client is lost, the others mask anew. An update is rounded to integers modulo 2**32.
Each pair of clients agrees on a key, one adds a stream of pseudo-random integers made of it, and
the other subtracts the same. In the sum the masks cancel exactly, whatever they were.

P is the number of values of an update, K the number of a round's clients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvsr.algorithms.base import Aggregated, FedAvg
from fedvsr.errors import UserError
from fedvsr.federation.aggregation import RoundSum
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.sampling import FederationConfig
from fedvsr.params import FloatVector
from fedvsr.training.updates import UpdateConfig

LEAST_CLIENTS = 2
"""Clients of the smallest sum: that of one client is its update."""
# Values that are masked at a time.
_CHUNK = 1 << 18
# Half the field: integers are read as -2**31 to 2**31 - 1.
_HALF = 2.0**31
# Part of the range by which rounding may exceed it, and part of the field that stays free for that.
_SLACK, _SPARE = 1e-3, 2e-3

Field = npt.NDArray[np.uint32]
"""Integers modulo 2**32."""


@dataclass(frozen=True)
class MaskRequest:
    """What the server asks a client to mask its update for."""

    client_id: int
    round_idx: int
    """From 1."""
    keys: Mapping[int, bytes]
    """Public key of each client of the sum, by client; also this one's."""
    weight: float
    """What the client's update counts in the sum."""
    quantum: float
    """What 1 in the field is worth."""


class KeyPair:
    """A client's keys for one sum. The private one never leaves the process, and is used once.

    It is drawn from the operating system, not from the run's seed: whoever knows the seed would
    know the masks.
    """

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self._private: X25519PrivateKey | None = X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def mask(self, change: FloatVector, request: MaskRequest) -> Field:
        """Round and mask an update (P,).

        Raises:
            ValueError: the request would reveal the update, or it does not fit into the field.
        """
        private, self._private = self._private, None
        if private is None:
            raise ValueError("this key has masked an update already")
        own, keys = request.client_id, request.keys
        if keys.get(own) != self.public or len(set(keys.values())) < LEAST_CLIENTS:
            raise ValueError(
                f"client {own} was asked to mask its update for a sum that is not one of at least "
                f"{LEAST_CLIENTS} clients with itself"
            )
        streams = [
            (own < other, _stream(private, public, request, other))
            for other, public in keys.items()
            if other != own
        ]
        masked = np.empty(change.size, np.uint32)
        zeros, noise = bytes(4 * _CHUNK), bytearray(4 * _CHUNK + 16)
        for start in range(0, change.size, _CHUNK):
            part = masked[start : start + _CHUNK]
            part[:] = rounded(change[start : start + _CHUNK], request)
            for adds, stream in streams:
                stream.update_into(zeros[: part.nbytes], noise)
                values = np.frombuffer(noise, "<u4", part.size)
                (np.add if adds else np.subtract)(part, values, out=part)
        return masked


def rounded(change: FloatVector, request: MaskRequest) -> Field:
    """An update, or a part of it, times its weight, to the nearest integers modulo 2**32.

    Raises:
        ValueError: a value does not fit.
    """
    values = np.rint(change.astype(np.float64) * (request.weight / request.quantum))
    if not np.abs(values).max(initial=0) < _HALF:
        raise ValueError(f"the update of client {request.client_id} does not fit into the field")
    # From negative ones 2**32 is not missing: the conversion is modulo 2**32.
    codes: Field = values.astype(np.int64).astype(np.uint32)
    return codes


def _stream(private: Any, public: bytes, request: MaskRequest, other: int) -> Any:
    """The stream of pseudo-random bytes that two clients of a sum share (AES-256, counter mode)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    own = request.client_id
    pair = [own, other] if own < other else [other, own]
    shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    # Both public keys are part of it, so that the masks are those of this sum alone.
    what = f"fedvsr secure sum: round {request.round_idx}, clients {pair[0]} and {pair[1]}"
    info = what.encode() + request.keys[pair[0]] + request.keys[pair[1]]
    key = HKDF(hashes.SHA256(), 32, None, info).derive(shared)
    # A key makes one stream, so its counter may start at zero.
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def change_of(
    params: FloatVector,
    begin: FloatVector,
    config: UpdateConfig,
    client_id: int,
    round_idx: int,
    out: FloatVector | None = None,
) -> FloatVector:
    """What a client's training changed, which must fit into the sum.

    Args:
        params: the client's parameters (P,), clipped.
        begin: the global parameters (P,) from which training started.
        config: says the range.
        client_id: the client, for the message.
        round_idx: the round, for the message.
        out: memory for the result; may be `params`.

    Raises:
        UserError: a value changes by more than the range.
    """
    change: FloatVector = np.subtract(params, begin, out=out)
    largest = max(float(change.max(initial=0)), -float(change.min(initial=0)))
    if largest > config.range * (1 + _SLACK):
        raise UserError(
            f"client {client_id} changes a value by {largest:.3g} in round {round_idx}, more than "
            f"update.secure_range = {config.range:g}; raise it, lower local.lr, or set "
            "update.clip_norm"
        )
    return change


def quantum_of(weights: Sequence[float], config: UpdateConfig) -> float:
    """What 1 in the field is worth in a round: the least power of 2 for which no sum overflows.

    A sum of K updates times their weights is at most the range times the sum of the weights, and
    rounding adds K / 2 at most, for which the spare part of the field suffices.
    """
    total = max(1.0, math.fsum(abs(weight) for weight in weights))
    least = config.range * total * (1 + _SPARE) / _HALF
    return 2.0 ** math.ceil(math.log2(least))


def unmasked(masked: Iterable[Field], work: RoundSum, quantum: float) -> Aggregated:
    """Add up what a round's clients sent, and return the next parameters (P,).

    Args:
        masked: each client's, in any order: sums of integers have none.
        work: the round.
        quantum: see `quantum_of`.
    """
    begin = work.server["params"]
    total = np.zeros(begin.size, np.uint32)
    for values in masked:
        np.add(total, values, out=total)
    params = np.empty_like(begin)
    for start in range(0, begin.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        change = total[part].view(np.int32) * quantum
        params[part] = begin[part] + change
    return Aggregated({"params": params}, work.weights)


def sum_here(work: RoundSum, config: UpdateConfig) -> Aggregated:
    """The secure sum of updates that this process has: the same steps and bits, but no secret."""
    quantum, begin = quantum_of(work.weights, config), work.server["params"]
    reports = [client.outcome.report for client in work.clients]
    pairs = {report.client_id: KeyPair() for report in reports}
    keys = {client_id: pair.public for client_id, pair in pairs.items()}

    def masked() -> Iterable[Field]:
        for client, report, weight in zip(work.clients, reports, work.weights, strict=True):
            params = client.update.upload["params"]
            assert isinstance(params, np.ndarray)
            change = change_of(params, begin, config, report.client_id, report.round_idx)
            request = MaskRequest(report.client_id, report.round_idx, keys, weight, quantum)
            yield pairs[report.client_id].mask(change, request)

    return unmasked(masked(), work, quantum)


def require_secure(
    algorithm: FedAvg, federation: FederationConfig, cluster: ClusterConfig, update: UpdateConfig
) -> None:
    """Check that a sum is all that the server needs of a round's updates.

    Raises:
        UserError: it is not, or the package `cryptography` is not installed.
    """
    if not update.secure_sum:
        return
    name, kind = algorithm.config.name, type(algorithm)
    if kind.aggregate is not FedAvg.aggregate or algorithm.upload != ("params",):
        raise UserError(
            f"update.secure_sum shows the server one sum alone, and algorithm.name = {name} needs "
            "more than the weighted sum of parameters; use fedvsr, fedavg or a server optimiser"
        )
    if algorithm.client_state or algorithm.personal:
        raise UserError(
            f"update.secure_sum hides a client's update, and algorithm.name = {name} lets the "
            "server keep what the client remembers, which would show it; use fedvsr or fedavg"
        )
    if federation.sampling == "poisson":
        raise UserError(
            "update.secure_sum needs at least two clients in a round, and federation.sampling = "
            "poisson may draw one or none; use uniform"
        )
    if federation.clients_per_round < LEAST_CLIENTS:
        raise UserError(
            "update.secure_sum with federation.clients_per_round = 1 hides nothing: the sum is the "
            "client's update; raise it"
        )
    if cluster.isolation != "client":
        raise UserError(
            "update.secure_sum with cluster.isolation = slot hides nothing: a slot's process would "
            "hold the updates of several clients; use client"
        )
    if find_spec("cryptography") is None:
        raise UserError("update.secure_sum needs the package cryptography; install fedvsr[privacy]")
