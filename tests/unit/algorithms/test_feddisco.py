"""FedDisco's weights, by hand."""

from __future__ import annotations

import pytest

from fedvsr.algorithms import fedavg, feddisco
from fedvsr.config import ExperimentConfig
from fedvsr.lookup import load
from fedvsr.messages import ClientReport, ClientTask
from fedvsr.runs.launch import prepare_data
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import LocalTrainer
from tests.conftest import MakeOnce
from tests.unit.algorithms.test_kept import small_clip

# Shares of size, and of four labels, of four clients.
SIZES = (40, 30, 20, 10)
LABELS = ((10, 0, 0, 0), (5, 5, 0, 0), (3, 3, 3, 3), (7, 1, 1, 1))


def reports(*, sizes: tuple[int, ...], labels: tuple[tuple[int, ...], ...]) -> list[ClientReport]:
    return [
        # A label that a client has no clip of is not in its report.
        ClientReport(
            *(i, 1, size, 1, 1.0, 1.0, 0.0),
            label_counts={name: n for name, n in zip("abcd", counts, strict=False) if n},
        )
        for i, (size, counts) in enumerate(zip(sizes, labels, strict=True))
    ]


@pytest.mark.parametrize(
    ("discrepancy", "weights"),
    [
        # ln 4, ln 2, 0 and 0.7 ln 2.8 + 0.3 ln 0.4 sum to 2.525287. 0.4 - 0.274483 + 0.1 is
        # 0.225517; with 0.3 - 0.137242 + 0.1, 0.2 + 0.1 and 0.1 - 0.088276 + 0.1 it sums to 0.9.
        ("kl", (0.250575, 0.291954, 0.333333, 0.124137)),
        # sqrt(3) / 2, 1 / 2, 0, sqrt(0.27): 0.066987, 0.15, 0.3 and below 0, of 0.516987.
        ("l2", (0.129572, 0.290143, 0.580285, 0.0)),
    ],
)
def test_weights(discrepancy: str, weights: tuple[float, ...]) -> None:
    algorithm = feddisco.Algorithm(feddisco.Config(discrepancy=discrepancy))
    got = algorithm.weights(reports(sizes=SIZES, labels=LABELS), 10)
    assert got == pytest.approx(weights, abs=1e-6)


def test_if_no_weight_is_above_zero_sizes_decide() -> None:
    algorithm = feddisco.Algorithm(feddisco.Config(a=100.0, b=-1.0))
    got = algorithm.weights(reports(sizes=SIZES, labels=LABELS), 10)
    assert got == pytest.approx((0.4, 0.3, 0.2, 0.1))


@pytest.mark.parametrize("labels", [((1,), (0, 2), (0, 0, 3)), ((1,), (2,), (3,))])
@pytest.mark.parametrize("discrepancy", ["kl", "l2"])
def test_clients_of_one_label_and_one_size_weigh_as_in_fedavg(
    labels: tuple[tuple[int, ...], ...], discrepancy: str
) -> None:
    """Also if they have the same label: then nothing is discrepant."""
    algorithm = feddisco.Algorithm(feddisco.Config(discrepancy=discrepancy))
    same = reports(sizes=(5, 5, 5), labels=labels)
    expected = fedavg.Algorithm(fedavg.Config()).weights(same, 10)
    assert algorithm.weights(same, 10) == pytest.approx(expected)


def test_a_client_counts_its_labels_only_if_they_are_asked_for(
    small: ExperimentConfig, make_once: MakeOnce
) -> None:
    clips = prepare_data(small, lambda *_: None).train[:2]
    task = ClientTask(client_id=0, round_idx=1, num_rounds=1, seed=1)
    counts = []
    for config in (feddisco.Config(), fedavg.Config()):
        trainer = LocalTrainer(small.model, config, small.local)
        report, _ = trainer.train(task, {"params": trainer.parameters.values()}, {}, clips)
        counts.append(report.label_counts)
    assert counts == [{"texture": 2}, {}]


def test_a_round_of_a_papers_network(make_once: MakeOnce) -> None:
    clip = small_clip(make_once)
    local = LocalConfig(steps=1, batch_size=1, num_frames=2, crop=128, lr=1e-3)
    model = load("fedvsr.models", "iart").Config(size="demo")
    trainer = LocalTrainer(model, feddisco.Config(), local)
    task = ClientTask(client_id=0, round_idx=1, num_rounds=1, seed=1)
    report, _ = trainer.train(task, {"params": trainer.parameters.values()}, {}, [clip])
    assert trainer.algorithm.weights([report], 1) == [1.0]
    assert report.label_counts == {clip.label: 1}
