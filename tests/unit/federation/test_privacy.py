from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.config import ExperimentConfig, load_config
from fedvsr.errors import UserError
from fedvsr.federation.executors import SerialExecutor
from fedvsr.federation.privacy import add_noise, delta_of, epsilon
from fedvsr.federation.sampling import FederationConfig
from fedvsr.records import Results, load_results
from fedvsr.runs.events import Event, RoundRecorded, RunStarted
from fedvsr.runs.execution import execute
from fedvsr.runs.launch import prepare_data
from fedvsr.runs.run import create_run
from fedvsr.training.updates import UpdateConfig

PRIVATE = [
    "algorithm.name=fedavg",
    "algorithm.weights=uniform",
    "update.clip_norm=0.5",
    "update.noise_multiplier=0.8",
    "federation.sampling=poisson",
    "federation.num_rounds=6",
]


def run(source: Path, settings: list[str], out: Path) -> tuple[list[Event], Results]:
    config = load_config(str(source), settings)
    split = prepare_data(config, lambda *_: None)
    created = create_run(config, out)
    return list(execute(created, split, SerialExecutor)), load_results(created.folder)


def test_noise_has_the_deviation_that_the_mean_needs() -> None:
    params = np.full(200_000, 3, np.float32)
    update = UpdateConfig(clip_norm=0.5, noise_multiplier=2)
    noisy = add_noise(params, update, clients_per_round=4, seed=1, round_idx=1)
    # z S / K = 2 * 0.5 / 4.
    assert (noisy - 3).std() == pytest.approx(0.25, rel=0.01)
    assert abs((noisy - 3).mean()) < 0.002
    again = add_noise(params, update, clients_per_round=4, seed=1, round_idx=1)
    np.testing.assert_array_equal(noisy, again)
    other = add_noise(params, update, clients_per_round=4, seed=1, round_idx=2)
    assert abs(np.corrcoef(noisy, other)[0, 1]) < 0.01


def test_epsilon_without_subsampling_is_the_gaussian_mechanisms() -> None:
    """All clients in every round: Renyi epsilon T a / (2 z^2) at order a (Mironov 2017).

    By proposition 3 there, epsilon is at most the least T a / (2 z^2) + log(1 / delta) / (a - 1)
    over a; a tighter conversion may give less.
    """
    update = UpdateConfig(clip_norm=1, noise_multiplier=5, delta=1e-3)
    federation = FederationConfig(num_rounds=10, clients_per_round=8, sampling="poisson")
    result = epsilon(update, federation, 8, 10)
    orders = np.linspace(1.01, 100, 10_000)
    bound = (10 * orders / (2 * 25) + np.log(1e3) / (orders - 1)).min()
    assert 0.75 * bound < result <= bound
    # An exchanged client moves the sum twice as far, as if there were half the noise.
    exchanged = federation.model_copy(update={"sampling": "uniform"})
    halved = update.model_copy(update={"noise_multiplier": 2.5})
    assert epsilon(update, exchanged, 8, 10) == pytest.approx(epsilon(halved, federation, 8, 10))


def test_epsilon_grows_with_rounds_and_falls_with_noise_and_federation() -> None:
    def spent(z: float = 1.0, num_rounds: int = 10, num_clients: int = 40) -> float:
        federation = FederationConfig(clients_per_round=4, sampling="poisson")
        update = UpdateConfig(clip_norm=1, noise_multiplier=z, delta=1e-3)
        return epsilon(update, federation, num_clients, num_rounds)

    assert spent(num_rounds=0) == 0
    assert spent(z=2) < spent() < spent(num_rounds=20)
    assert spent(num_clients=400) < spent()
    assert delta_of(UpdateConfig(), 40) == pytest.approx(40**-1.1)


def test_a_private_run_records_what_it_spent(small_yaml: Path, tmp_path: Path) -> None:
    events, results = run(small_yaml, PRIVATE, tmp_path)
    started = events[0]
    assert isinstance(started, RunStarted)
    config = ExperimentConfig.model_validate_json(results.runs["config"][0])
    spent = [epsilon(config.update, config.federation, 4, t) for t in range(7)]
    assert results.rounds["epsilon"].tolist() == spent
    assert any(f"epsilon = {spent[-1]:.3g}" in note for note in started.notes)
    assert results.clients["weight"].eq(0.5).all(), (
        "1 / clients_per_round, for any number of clients drawn"
    )
    assert results.rounds["num_sampled"][1:].nunique() > 1, "Poisson cohorts vary"


def test_a_round_without_clients_is_recorded(small_yaml: Path, tmp_path: Path) -> None:
    rare = [f"federation.{setting}" for setting in ("sampling=poisson", "clients_per_round=1")]
    events, results = run(small_yaml, [*rare, "federation.num_rounds=6"], tmp_path)
    sampled = results.rounds["num_sampled"].tolist()[1:]
    assert 0 in sampled
    assert max(sampled) > 0
    assert isinstance(events[-1], RoundRecorded)
    before = results.rounds["psnr_db"].diff()[1:]
    assert (before.to_numpy() == 0).tolist() == [count == 0 for count in sampled]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm.weights=samples"], "needs algorithm.weights = uniform, not samples"),
        (["algorithm.name=scaffold"], "algorithm.name = scaffold takes more from a client"),
        (["algorithm.name=fedsr"], "algorithm.name = fedsr takes more from a client"),
        (["federation.sampling=size"], "no guarantee with federation.sampling = size"),
        (
            ["federation.sampling=uniform", "federation.offline_probability=0.1"],
            "cohorts differ in size",
        ),
    ],
)
def test_what_the_noise_would_not_cover_is_refused(
    small_yaml: Path, settings: list[str], message: str
) -> None:
    load_config(str(small_yaml), PRIVATE)
    # Noise and a sum that hides the updates go together.
    secure = ["federation.sampling=uniform", "update.secure_sum=true"]
    assert load_config(str(small_yaml), [*PRIVATE, *secure]).update.range == 0.5
    with pytest.raises(UserError, match=message):
        load_config(str(small_yaml), [*PRIVATE, *settings])
