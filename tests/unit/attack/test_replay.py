"""A round that is computed again gives the bits of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.attack.cases import Case, received_of
from fedvsr.attack.replay import Replay, rewind
from fedvsr.config import ExperimentConfig
from fedvsr.errors import UserError
from fedvsr.messages import Round
from fedvsr.params import ParamTable
from fedvsr.training import checkpoint
from fedvsr.training.local import LocalTrainer
from fedvsr.training.updates import UpdateConfig, incoming
from tests.integration.running import no_progress, run_serially


def after(replay: Replay) -> np.ndarray:
    """The global parameters after a round, from updates that are computed again."""
    uploads, weights = [], []
    for client_id, row in replay.recorded.items():
        report, update = replay.train(client_id)
        assert replay.is_recorded(report)
        uploads.append({"params": incoming(update.upload["params"], replay.params)})
        weights.append(row["weight"])
    info = Round(replay.round_idx, 3, len(replay.clips), len(uploads), ())
    summed = replay.algorithm.aggregate(iter(uploads), weights, replay.server, info)
    return replay.algorithm.server_step(replay.server, summed.vectors, info)["params"]


def params_of(folder: Path, config: ExperimentConfig, round_idx: int) -> np.ndarray:
    trainer = LocalTrainer(config.model, config.algorithm, config.local)
    table = ParamTable.of(trainer.network)
    saved = checkpoint.read(folder / "checkpoints", round_idx, table, config.config_hash())
    return saved.server["params"]


def test_updates_that_are_computed_again_sum_to_the_next_checkpoint(undisturbed: Path) -> None:
    replay = rewind(undisturbed, None, no_progress)
    assert replay.round_idx == 3
    assert after(replay).tobytes() == params_of(undisturbed, replay.config, 3).tobytes()


def test_so_do_those_of_clients_that_remember_what_compression_left_out(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    packed = small.model_copy(update={"update": UpdateConfig(compression="int8")})
    every = packed.federation.model_copy(update={"clients_per_round": 4, "num_rounds": 2})
    folder = run_serially(packed.model_copy(update={"federation": every}), tmp_path)
    replay = rewind(folder, 2, no_progress)
    assert all("residual" in replay.states.get(client_id) for client_id in replay.recorded)
    assert after(replay).tobytes() == params_of(folder, replay.config, 2).tobytes()
    # The first round starts from the seed.
    first = rewind(folder, 1, no_progress)
    assert after(first).tobytes() == replay.params.tobytes()


def test_what_is_attacked_of_a_secure_sum_is_what_the_server_read(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    """The sum, with the run's own weights: FedVSR's next parameters, and no client's."""
    secure = small.model_copy(update={"update": UpdateConfig(secure_sum=True)})
    federation = secure.federation.model_copy(update={"num_rounds": 2})
    folder = run_serially(secure.model_copy(update={"federation": federation}), tmp_path)
    replay = rewind(folder, 2, no_progress)
    client_id = next(iter(replay.recorded))
    case = Case("run", "", None, replay.config.update)
    report, received = received_of(replay, client_id, case)
    assert report.client_id == client_id
    assert received.tobytes() == params_of(folder, replay.config, 2).tobytes()


def test_a_round_whose_start_is_not_kept_is_refused(undisturbed: Path) -> None:
    with pytest.raises(UserError, match=r"--round 2: .* before round 1, 3 only; give one of these"):
        rewind(undisturbed, 2, no_progress)
    with pytest.raises(UserError, match="is not a run's folder"):
        rewind(undisturbed.parent, None, no_progress)
