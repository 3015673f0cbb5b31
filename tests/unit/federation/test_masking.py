"""Secure sums: the sum is exact, a masked update says nothing, and what needs more is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedvsr.algorithms import fedavg
from fedvsr.algorithms.base import Aggregated
from fedvsr.config import load_config
from fedvsr.errors import UserError
from fedvsr.federation.aggregation import RoundSum, aggregate_here
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import ClientOutcome, Fault, TrainedClient
from fedvsr.federation.masking import (
    Field,
    KeyPair,
    MaskRequest,
    change_of,
    quantum_of,
    rounded,
    sum_here,
    unmasked,
)
from fedvsr.federation.privacy import add_noise
from fedvsr.federation.rounds import RoundFinished, RoundSetup, run_rounds
from fedvsr.federation.sampling import FederationConfig
from fedvsr.messages import ClientReport, ClientUpdate, Round
from fedvsr.params import FloatVector
from fedvsr.records import load_results
from fedvsr.training.updates import UpdateConfig
from tests.integration.running import run_serially
from tests.unit.federation.test_rounds import Shuffling, start

OF_FOUR = ["federation.clients_per_round=4"]
SECURE = UpdateConfig(secure_sum=True)
# Not a multiple of what is masked at a time.
SIZE = (1 << 18) + 4099


def requests(weights: Sequence[float], config: UpdateConfig = SECURE) -> list[MaskRequest]:
    """What clients 3, 4, ... are asked for; their keys are still missing."""
    quantum = quantum_of(weights, config)
    return [MaskRequest(3 + i, 1, {}, weight, quantum) for i, weight in enumerate(weights)]


def masked(changes: Sequence[FloatVector], asked: Sequence[MaskRequest]) -> list[Field]:
    """What clients send that mask their updates for one sum."""
    pairs = {request.client_id: KeyPair() for request in asked}
    keys = {client_id: pair.public for client_id, pair in pairs.items()}
    return [
        pairs[request.client_id].mask(change, replace(request, keys=keys))
        for change, request in zip(changes, asked, strict=True)
    ]


def changes_of(count: int, size: int = SIZE, scale: float = 1e-3) -> list[FloatVector]:
    rng = np.random.default_rng(count)
    return [np.float32(scale) * rng.standard_normal(size, np.float32) for _ in range(count)]


def work_of(
    changes: Sequence[FloatVector], weights: Sequence[float], begin: FloatVector
) -> RoundSum:
    """A round whose clients send these changes."""
    clients = [
        TrainedClient(
            ClientOutcome(ClientReport(3 + i, 1, 1, 1, 1.0, 1.0, 0.0)),
            ClientUpdate({"params": begin + change}, {}),
        )
        for i, change in enumerate(changes)
    ]
    info = Round(1, 1, len(clients), len(clients), ())
    return RoundSum(fedavg.Algorithm(fedavg.Config()), clients, weights, {"params": begin}, info)


@pytest.mark.parametrize("weights", [(0.25, 0.75), (0.1, 0.2, 0.3, 0.15, 0.25)])
def test_the_sum_of_masked_updates_is_that_of_rounded_ones(weights: tuple[float, ...]) -> None:
    changes, asked = changes_of(len(weights)), requests(weights)
    plain = [rounded(change, request) for change, request in zip(changes, asked, strict=True)]
    sent = masked(changes, asked)
    expected = np.sum(np.stack(plain), axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(np.sum(np.stack(sent), axis=0, dtype=np.uint32), expected)
    for values, hidden in zip(plain, sent, strict=True):
        assert hidden.nbytes == 4 * SIZE, "as many bytes as parameters take"
        assert (values == hidden).mean() < 1e-3


def test_the_next_parameters_are_within_half_a_quantum_per_client() -> None:
    weights, config = (0.2, 0.5, 0.3), SECURE
    begin = np.random.default_rng(9).standard_normal(SIZE, np.float32)
    work = work_of(changes_of(3), weights, begin)
    (one, other) = (sum_here(work, config) for _ in range(2))
    assert one.vectors["params"].tobytes() == other.vectors["params"].tobytes(), "whatever masks"
    assert one.weights == weights
    uploads = [client.update.upload["params"] for client in work.clients]
    exact = begin + sum(
        w * (upload - begin).astype(float) for w, upload in zip(weights, uploads, strict=True)
    )
    # Each client rounds once, and the result is rounded to float32.
    quantum = quantum_of(weights, config)
    assert quantum == 2.0**-30, "the least power of 2 above 1.002 / 2**31"
    bound = len(weights) * quantum / 2 + np.spacing(np.abs(begin) + 1) / 2
    error = np.abs(one.vectors["params"] - exact)
    assert (error <= bound).all()
    assert error.max() > quantum / 4, "it is not exact"
    # A plain sum of floats is no nearer.
    plain = aggregate_here(work).vectors["params"]
    assert np.abs(plain - exact).max() > 0.3 * error.max()


def test_the_largest_updates_do_not_wrap_around() -> None:
    """FedNova's weights may sum to more than 1."""
    for config in (SECURE, UpdateConfig(secure_sum=True, clip_norm=0.37)):
        for weights in ((0.5, 0.5), (0.9, 0.9), (1.0, 1.0), (1.0, -1.0)):
            edge = np.float32(config.range * (1 + 9e-4))
            changes = [np.array([edge, -edge, 0], np.float32)] * 2
            begin = np.zeros(3, np.float32)
            sent = masked(changes, requests(weights, config))
            work = work_of(changes, weights, begin)
            total = unmasked(sent, work, quantum_of(weights, config)).vectors["params"]
            np.testing.assert_allclose(total, sum(weights) * changes[0], rtol=1e-6, atol=1e-8)


def seeded(seed: int) -> KeyPair:
    """Keys that are the same in every run of a test."""
    pair = KeyPair()
    pair._private = X25519PrivateKey.from_private_bytes(np.random.default_rng(seed).bytes(32))
    pair.public = pair._private.public_key().public_bytes_raw()
    return pair


def test_a_masked_update_looks_like_noise() -> None:
    """The bytes of a constant update are uniform, and updates that differ look alike."""
    pairs = {client_id: seeded(client_id) for client_id in (3, 4, 5)}
    keys = {client_id: pair.public for client_id, pair in pairs.items()}
    constant = np.full(1 << 18, 0.25, np.float32)
    request = MaskRequest(3, 1, keys, 1 / 3, quantum_of([1.0], SECURE))
    sent = pairs[3].mask(constant, request)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((sent >> shift) & 255, minlength=256)
        expected = sent.size / 256
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        # 255 degrees of freedom: mean 255, deviation 22.6.
        assert 255 - 5 * 22.6 < chi_squared < 255 + 5 * 22.6
    # Neighbours do not depend on each other.
    values = sent / 2**32 - 0.5
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / np.sqrt(sent.size)
    # Nor do clients whose updates are equal.
    others = {4: pairs[4].mask(constant, replace(request, client_id=4))}
    assert abs(np.corrcoef(values, others[4])[0, 1]) < 5 / np.sqrt(sent.size)
    # Two of three do not unmask: what remains is the third one's mask.
    rest = sent + others[4]
    assert np.unique(rest).size > 0.99 * rest.size


def test_keys_are_used_once_and_for_a_sum_of_several() -> None:
    one, other = KeyPair(), KeyPair()
    change = np.zeros(3, np.float32)
    request = MaskRequest(3, 1, {3: one.public, 4: other.public}, 0.5, 2.0**-30)
    first = one.mask(change, request)
    # Who knows the public keys alone, as the server does, makes other masks.
    impostor = KeyPair()
    impostor.public = one.public
    assert not (impostor.mask(change, request) == first).any()
    with pytest.raises(ValueError, match="masked an update already"):
        one.mask(change, request)
    again = KeyPair()
    second = again.mask(change, replace(request, keys={3: again.public, 4: other.public}))
    assert not (first == second).any(), "new keys, new masks"
    for keys in ({}, {3: "own"}, {4: "own", 5: "other"}, {3: "own", 4: "own"}):
        pair = KeyPair()
        known = {"own": pair.public, "other": other.public}
        asked = replace(request, keys={i: known[name] for i, name in keys.items()})
        with pytest.raises(ValueError, match="not one of at least 2 clients with itself"):
            pair.mask(change, asked)
    huge = np.array([3.0], np.float32)
    with pytest.raises(ValueError, match="does not fit into the field"):
        rounded(huge, replace(request, weight=1.0))


def test_a_larger_change_than_the_range_is_one_line(small_yaml: Path, tmp_path: Path) -> None:
    begin = np.ones(2, np.float32)
    fits = np.array([2, 0.5], np.float32)
    assert change_of(fits, begin, SECURE, 3, 5).tolist() == [1, -0.5]
    with pytest.raises(UserError, match=r"client 3 changes a value by 1\.5 in round 5, more than"):
        change_of(np.array([1, -0.5], np.float32), begin, SECURE, 3, 5)
    settings = ["update={secure_sum: true, secure_range: 1e-6}", "federation.num_rounds=1"]
    config = load_config(str(small_yaml), settings)
    with pytest.raises(UserError, match=r"update\.secure_range = 1e-06; raise it, lower local\.lr"):
        run_serially(config, tmp_path)
    # Clipping bounds it: then the norm is the range.
    clipping = ["update={secure_sum: true, clip_norm: 1e-6}", "federation.num_rounds=1"]
    run_serially(load_config(str(small_yaml), clipping), tmp_path / "clipped")


def test_a_run_gives_what_a_plain_one_gives_and_the_same_bits_twice(
    small_yaml: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """FedVSR, whose weights are known only when all losses are."""
    config = load_config(str(small_yaml), ["update.secure_sum=true"])
    one, other = (run_serially(config, tmp_path / name) for name in "ab")
    files = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    assert files[0] == files[1]
    results, plain = load_results(one), load_results(undisturbed)
    assert results.clients["upload_bytes"].equals(plain.clients["upload_bytes"])
    # Rounding changes the last digits of what the second round starts from.
    assert not results.rounds["psnr_db"].equals(plain.rounds["psnr_db"])
    np.testing.assert_allclose(results.rounds["psnr_db"], plain.rounds["psnr_db"], atol=1e-3)
    np.testing.assert_allclose(
        results.clients["weight"].astype(float), plain.clients["weight"].astype(float), rtol=1e-3
    )


def test_a_client_that_is_left_alone_is_not_revealed(small_yaml: Path, tmp_path: Path) -> None:
    settings = ["update.secure_sum=true", "federation.upload_failure_probability=0.5"]
    config = load_config(str(small_yaml), [*settings, "federation.num_rounds=4", "seed=1"])
    results = load_results(run_serially(config, tmp_path))
    arrived = 2 - results.rounds["num_upload_failures"].to_numpy()[1:]
    assert 1 in arrived, "the seed gives a round of one update"
    alone = results.faults[results.faults["kind"] == "alone"]
    assert alone["round_idx"].tolist() == [i for i, n in enumerate(arrived, 1) if n == 1]
    moved = results.rounds["psnr_db"].diff().to_numpy()[1:] != 0
    assert moved.tolist() == [n == 2 for n in arrived], "the network stays as it was"


class Summing(Shuffling):
    """Clients of numbers whose updates are summed under masks."""

    update: UpdateConfig

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        yield sum_here(work, self.update)


def test_noise_is_added_to_the_sum() -> None:
    def after(**settings: float) -> FloatVector:
        update = UpdateConfig(secure_sum=True, clip_norm=1e5, **settings)
        config = FederationConfig(num_rounds=1, clients_per_round=3)
        algorithm = fedavg.Algorithm(fedavg.Config(weights="uniform"))
        executor = Summing([0, 1, 2])
        executor.update = update
        setup = RoundSetup(algorithm, config, update, [4] * 10, (), seed=7)
        *_, last = run_rounds(start(), setup, executor, ClientStates())
        assert isinstance(last, RoundFinished)
        return last.state.params

    noise = add_noise(
        np.zeros(50, np.float32), UpdateConfig(clip_norm=1e5, noise_multiplier=2), 3, 7, 1
    )
    noisy = after(noise_multiplier=2)
    np.testing.assert_allclose(noisy - after(), noise, rtol=1e-3, atol=0.1)
    assert np.abs(noise).max() > 1e4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["algorithm={name: krum, num_byzantine: 0}", *OF_FOUR],
            "needs more than the weighted sum of parameters",
        ),
        (["algorithm.name=fedmedian"], "needs more than the weighted sum of parameters"),
        (["algorithm.name=fisher"], "needs more than the weighted sum of parameters"),
        (["algorithm.name=scaffold"], "needs more than the weighted sum of parameters"),
        (["algorithm.name=moon"], "keep what the client remembers, which would show it"),
        (["algorithm.name=local"], "sends no updates"),
        (["algorithm.name=centralized"], "sends no updates"),
        (["update.compression=int8"], "cannot be summed under the masks"),
        (["federation.sampling=poisson"], "at least two clients in a round"),
        (["federation.clients_per_round=1"], "the sum is the client's update"),
        (["cluster.isolation=slot"], "would hold the updates of several clients"),
        (["update.clip_norm=1", "update.secure_range=2"], "update.secure_range = 2 has no effect"),
    ],
)
def test_what_would_show_more_than_a_sum_is_refused(
    small_yaml: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_config(str(small_yaml), ["algorithm.name=fedavg", "update.secure_sum=true", *settings])


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedvsr_published", "fednova", "fedadam"])
def test_sums_are_enough_for(small_yaml: Path, name: str) -> None:
    load_config(str(small_yaml), [f"algorithm={{name: {name}}}", "update.secure_sum=true"])
