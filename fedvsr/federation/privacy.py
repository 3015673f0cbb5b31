"""Central differential privacy: noise on the mean of clipped updates, and its guarantee.

McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018. The unit of
protection is a client with all its clips. The server is trusted with individual updates.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from fedvsr.algorithms.base import FedAvg
from fedvsr.errors import UserError
from fedvsr.federation.sampling import FederationConfig
from fedvsr.params import FloatVector
from fedvsr.seeding import generator
from fedvsr.training.updates import UpdateConfig


def require_private(
    algorithm: FedAvg, federation: FederationConfig, update: UpdateConfig, num_clients: int
) -> None:
    """Check that the noise gives the guarantee that `epsilon` computes.

    Raises:
        UserError: with these settings it would not, or the extra `privacy` is not installed.
    """
    if not update.noise_multiplier:
        return
    name, kind = algorithm.config.name, type(algorithm)
    plain = kind.aggregate is FedAvg.aggregate and kind.weights is FedAvg.weights
    if not plain or algorithm.upload != ("params",) or algorithm.pooled:
        raise UserError(
            "update.noise_multiplier protects only a plain mean of updates, and algorithm.name = "
            f"{name} takes more from a client; use fedavg or one of its server optimisers"
        )
    if algorithm.config.weights != "uniform":
        raise UserError(
            f"update.noise_multiplier needs algorithm.weights = uniform, not "
            f"{algorithm.config.weights}: weights would reveal what the noise does not cover"
        )
    if federation.sampling not in ("uniform", "poisson"):
        raise UserError(
            f"update.noise_multiplier has no guarantee with federation.sampling = "
            f"{federation.sampling}; use poisson or uniform"
        )
    if federation.sampling == "uniform" and federation.offline_probability:
        raise UserError(
            "update.noise_multiplier with federation.offline_probability needs "
            "federation.sampling = poisson: cohorts differ in size"
        )
    if num_clients == 1 and update.delta is None:
        raise UserError("update.noise_multiplier with one client needs update.delta")
    _accounting()


def add_noise(
    params: FloatVector, update: UpdateConfig, clients_per_round: int, seed: int, round_idx: int
) -> FloatVector:
    """Add noise to the mean (P,) of updates whose norms are at most `clip_norm`.

    The mean is the sum of updates divided by `clients_per_round`. The noise follows from the run's
    seed, so anyone who knows the seed can remove it.
    """
    assert update.clip_norm is not None
    deviation = update.noise_multiplier * update.clip_norm / clients_per_round
    noise = generator(seed, "noise", round_idx).standard_normal(params.size, np.float32)
    noise *= np.float32(deviation)
    noise += params
    return noise


def epsilon(
    update: UpdateConfig, federation: FederationConfig, num_clients: int, num_rounds: int
) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after `num_rounds`, by Renyi orders.

    With Poisson sampling, neighbouring federations differ by one client that is missing. With
    uniform sampling without replacement, one client is exchanged for another, which can move the
    sum twice as far; that bound (Wang et al. 2019) is much looser.

    Raises:
        UserError: the extra `privacy` is not installed.
    """
    accounting, rdp = _accounting()
    if num_rounds == 0:
        return 0.0
    cohort, multiplier = federation.clients_per_round, update.noise_multiplier
    if federation.sampling == "poisson":
        relation = accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        event = accounting.PoissonSampledDpEvent(
            cohort / num_clients, accounting.GaussianDpEvent(multiplier)
        )
    else:
        relation = accounting.NeighboringRelation.REPLACE_ONE
        event = accounting.SampledWithoutReplacementDpEvent(
            num_clients, cohort, accounting.GaussianDpEvent(multiplier / 2)
        )
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    # It warns about every order whose series does not converge, and leaves that order out.
    logging.getLogger("absl").setLevel(logging.ERROR)
    accountant.compose(event, num_rounds)
    return float(accountant.get_epsilon(delta_of(update, num_clients)))


def delta_of(update: UpdateConfig, num_clients: int) -> float:
    """The delta for which epsilon is computed: the configured one, or `num_clients ** -1.1`."""
    return update.delta if update.delta is not None else float(num_clients**-1.1)


def _accounting() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError:
        raise UserError(
            "update.noise_multiplier needs the package dp-accounting; install fedvsr[privacy]"
        ) from None
    return dp_accounting, rdp
