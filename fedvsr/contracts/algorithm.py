"""The contract of every algorithm, in parts; each takes the algorithm and a folder for clips."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from fedvsr import algorithms
from fedvsr.algorithms.base import Batch, FedAvg, LocalRound, is_by_coordinate, start
from fedvsr.contracts import require, require_close, samples
from fedvsr.data.clips import Clip
from fedvsr.federation.aggregation import cut
from fedvsr.layout import NOT_SHARED
from fedvsr.losses import charbonnier, high_frequency
from fedvsr.messages import ClientReport, ClientTask, Round, Vectors
from fedvsr.models import tiny
from fedvsr.params import FloatVector, join_tensors
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import LocalTrainer
from fedvsr.training.updates import incoming

# Not the first round, and two tensors.
_ROUND = Round(2, 10, num_clients=8, num_sampled=6, tensors=(slice(0, 30), slice(30, 100)))
_MODEL = tiny.Config(channels=4, blocks=1)
_LOCAL = LocalConfig(steps=3, batch_size=2, num_frames=3, crop=32, lr=2e-3)


def settings_can_be_sent(algorithm: FedAvg, _: Path) -> None:
    """Its settings can be pickled, by which they reach the clients."""
    require(bool(pickle.dumps(algorithm.config)), "its settings cannot be pickled")


def names_its_source_and_its_vectors(algorithm: FedAvg, _: Path) -> None:
    """It says where it is published, and sends only vectors that the server has."""
    require(bool(getattr(algorithm, "source", "")), "Algorithm.source is empty")
    require(bool(type(algorithm).__doc__), "Algorithm has no docstring")
    has = {"params", *algorithm.server_state}
    require(
        set(algorithm.broadcast) <= has,
        f"broadcast = {algorithm.broadcast} names vectors that server_state does not",
    )


def weights_follow_their_client(algorithm: FedAvg, _: Path) -> None:
    """A client's weight does not depend on its place in the round; weights sum to 1 at most."""
    reports = [_report(0, 0.3, 4), _report(1, 0.1, 8), _report(2, 0.2, 2)]
    weights = algorithm.weights(reports, 10)
    require(0 < sum(weights) <= 1 + 1e-9, f"the weights sum to {sum(weights):g}, not to 0 to 1")
    turned = algorithm.weights(reports[::-1], 10)
    require_close(turned, weights[::-1], "weights in another order", rtol=1e-6, atol=1e-12)


def equal_clients_weigh_the_same_and_give_their_own_vector(algorithm: FedAvg, _: Path) -> None:
    """Six equal uploads aggregate to that upload, times the sum of the weights."""
    weights = algorithm.weights([_report(i, 0.2) for i in range(6)], 10)
    require_close(weights, [weights[0]] * 6, "weights of equal clients", rtol=1e-6, atol=1e-12)
    random = np.random.default_rng(0)
    upload = {name: random.random(100).astype(np.float32) for name in algorithm.upload}
    server = start(algorithm, np.zeros(100, np.float32))
    result = algorithm.aggregate([upload] * 6, weights, server, _ROUND).vectors
    # What the weights lack to 1 is the share of the global network, here zeros.
    own = upload["params"] if algorithm.upload else np.zeros(100)
    expected = sum(weights) * own
    require_close(result["params"], expected, "the mean of equal uploads", rtol=1e-5)


def the_server_changes_no_argument_and_stays_if_no_client_moved(algorithm: FedAvg, _: Path) -> None:
    """Vectors are read-only on the server; it keeps its parameters if the clients do."""
    params = np.random.default_rng(1).standard_normal(100).astype(np.float32)
    server = start(algorithm, params)
    upload = server | dict.fromkeys(set(algorithm.upload) - {"params"}, np.zeros_like(params))
    for vector in (*server.values(), *upload.values()):
        vector.flags.writeable = False
    weights = algorithm.weights([_report(i, 0.2) for i in range(6)], 10)
    aggregated = algorithm.aggregate(iter([upload] * 6), weights, server, _ROUND)
    after = algorithm.server_step(
        server, aggregated.vectors, Round(1, 10, 8, 6, (slice(0, 60), slice(60, 100)))
    )
    require(set(after) == set(server), f"the server has {sorted(after)}, not {sorted(server)}")
    # Adaptive servers divide rounding errors by tau.
    require_close(after["params"], params, "parameters after no client moved", atol=1e-5)


def order_of_clients_does_not_matter(algorithm: FedAvg, _: Path) -> None:
    """The aggregate is the same in any order of clients, up to rounding."""
    random = np.random.default_rng(2)
    uploads = [
        {name: random.random(100).astype(np.float32) for name in algorithm.upload} for _ in range(6)
    ]
    reports = [_report(i, 0.1 + 0.1 * i, 1 + i) for i in range(6)]
    server = start(algorithm, np.zeros(100, np.float32))

    def outcome(order: list[int]) -> FloatVector:
        weights = algorithm.weights([reports[i] for i in order], 10)
        chosen = [uploads[i] for i in order]
        return algorithm.aggregate(chosen, weights, server, _ROUND).vectors["params"]

    turned, straight = outcome([3, 1, 0, 5, 4, 2]), outcome([*range(6)])
    require_close(turned, straight, "aggregates in two orders", rtol=1e-7, atol=1e-6)


def slices_give_the_bits_of_the_whole_if_it_says_so(algorithm: FedAvg, _: Path) -> None:
    """An `aggregate` that is marked `by_coordinate` gives the same bits by slices of vectors."""
    if not is_by_coordinate(algorithm):
        return
    random = np.random.default_rng(3)
    # Last slices of one value: some sums of NumPy have another order there.
    for size in range(97, 353, 16):
        uploads = [
            {name: random.standard_normal(size).astype(np.float32) for name in algorithm.upload}
            for _ in range(20)
        ]
        server = start(algorithm, random.standard_normal(size).astype(np.float32))
        for num_slices in (2, 7, (size + 15) // 16):
            _require_equal_slices(algorithm, uploads, server, cut(size, num_slices))


def _require_equal_slices(
    algorithm: FedAvg, uploads: Sequence[Vectors], server: Vectors, parts: Sequence[slice]
) -> None:
    reports = [_report(i, 0.1 + 0.1 * i, 1 + i) for i in range(len(uploads))]
    weights = algorithm.weights(reports, 10)
    whole = algorithm.aggregate(iter(uploads), weights, server, _ROUND)
    for part in parts:
        own = [{name: vector[part] for name, vector in upload.items()} for upload in uploads]
        sent = {name: server[name][part] for name in algorithm.broadcast}
        got = algorithm.aggregate(iter(own), weights, sent, dataclasses.replace(_ROUND, tensors=()))
        where = f"values {part.start} to {part.stop}"
        require(set(got.vectors) == set(whole.vectors), f"other vectors for {where}")
        require(got.weights == whole.weights, f"other shares for {where}")
        for name, vector in got.vectors.items():
            same = vector.tobytes() == whole.vectors[name][part].tobytes()
            require(same, f"other bits of {name} for {where}")


def descending_the_local_loss_lowers_it(algorithm: FedAvg, _: Path) -> None:
    """A step against the gradient of the local loss lowers it."""
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(1, 2, 3, 8, 8, generator=generator)
    sr = torch.rand(1, 2, 3, 8, 8, generator=generator).requires_grad_()

    def loss() -> torch.Tensor:
        return algorithm.local_loss(Batch(charbonnier(sr, gt), sr, gt))

    before = loss()
    (slope,) = torch.autograd.grad(before, sr)
    with torch.no_grad():
        sr -= 5 * slope
    after = loss()
    require(bool(after < before), f"from {before.item():g} to {after.item():g}")


def takes_the_detail_loss_and_the_proximal_term(algorithm: FedAvg, _: Path) -> None:
    """`lambda_hifr` and `mu` have their effect, unless the method leaves no choice of them."""
    settings = {"lambda_hifr": 0.5, "mu": 0.25}
    both = algorithms.build(type(algorithm.config)(**settings))
    generator = torch.Generator().manual_seed(0)
    sr, gt = (torch.rand(1, 2, 3, 8, 8, generator=generator) for _ in range(2))
    loss = both.local_loss(Batch(charbonnier(sr, gt), sr, gt)).item()
    expected = charbonnier(sr, gt) + 0.5 * high_frequency(sr, gt, both.config.dwt)
    require_close(loss, expected.item(), "the loss with lambda_hifr = 0.5", rtol=1e-6)
    # w = (3, 1), w_t = (1, 1): the pull is mu (2, 0) and the penalty mu / 2 * 4.
    parameter = torch.nn.Parameter(torch.tensor([3.0, 1.0]))
    parameter.grad = torch.zeros(2)
    shared = {name: [torch.zeros(2)] for name in both.broadcast} | {"params": [torch.ones(2)]}
    shared |= {name: [torch.zeros(0, 2)] for name in both.cohort_state}
    penalty = both.correct_gradients(LocalRound([parameter], shared, {}, {}, 1, 1), 0)
    require_close(penalty, 0.5, "the penalty with mu = 0.25", rtol=1e-6)
    require_close(parameter.grad.tolist(), [0.5, 0.0], "the pull with mu = 0.25")


def a_round_of_training_is_whole_and_repeats(algorithm: FedAvg, folder: Path) -> None:
    """A client sends and remembers what is declared, and the same task gives the same bits."""
    clips = _clips(folder)[:2]
    algorithm = _fitting(algorithm)
    trainer = LocalTrainer(_MODEL, algorithm.config, _LOCAL)
    server = start(algorithm, trainer.parameters.values())
    shared = {name: server[name] for name in algorithm.broadcast}
    task = ClientTask(client_id=0, round_idx=1, num_rounds=2, seed=5)
    report, update = trainer.train(task, shared, {}, clips)
    for what, got, declared in (
        ("sends", update.upload, algorithm.upload),
        ("remembers", update.state, algorithm.client_state + _own(algorithm)),
    ):
        require(set(got) == set(declared), f"{what} {sorted(got)}, declared {sorted(declared)}")
    sent = sum(vector.nbytes for vector in update.upload.values())
    require(report.upload_bytes == sent, f"upload_bytes is {report.upload_bytes}, not {sent}")
    require(report.update_norm > 0, "the client has not moved")
    written = json.loads(json.dumps(dataclasses.asdict(report)))
    require(ClientReport(**written) == report, "the report changes when it is written as an event")
    # A second round, twice, with what the client remembers.
    later = dataclasses.replace(task, round_idx=2)
    _, one = trainer.train(later, shared, update.state, clips)
    _, two = trainer.train(later, shared, update.state, clips)
    for name, vector in one.upload.items():
        same = np.asarray(vector).tobytes() == np.asarray(two.upload[name]).tobytes()
        require(same, f"the same task gave two different vectors {name}")
    for name, vector in one.state.items():
        same = vector.tobytes() == two.state[name].tobytes()
        require(same, f"after the same task the client remembers two different vectors {name}")


def a_round_lowers_the_loss(algorithm: FedAvg, folder: Path) -> None:
    """Six clients of one clip each, from a network whose last layer is off by noise.

    FedAvg lowers it by 20 %. Server optimisers start slowly by design, but a method that hardly
    moves has wrong settings.
    """
    algorithm, clips = _fitting(algorithm), _clips(folder)
    local = _LOCAL.model_copy(update={"steps": 8})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = LocalTrainer(_MODEL, algorithm.config, local)
        last = first.network.get_parameter("to_pixels.bias")
        torch.nn.init.normal_(last, std=0.05)
    # Noise in a part that stays with clients is in their first values.
    rest = join_tensors(first.layout.params(first.network, *NOT_SHARED))
    trainer = LocalTrainer(_MODEL, algorithm.config, local, rest=rest)
    server = start(algorithm, first.parameters.values())
    shared = {name: server[name] for name in algorithm.broadcast}
    reports, updates = [], []
    for i, clip in enumerate(clips):
        task = ClientTask(client_id=i, round_idx=1, num_rounds=5, seed=i)
        client_report, update = trainer.train(task, shared, {}, [clip])
        reports.append(client_report)
        updates.append(update)
    before = _loss_on(trainer, server["params"], clips)
    params = server["params"]
    if algorithm.upload:
        weights = algorithm.weights(reports, 5)
        uploads = [{n: incoming(v, params) for n, v in u.upload.items()} for u in updates]
        tensors = trainer.layout.table_of("shared").slices()
        round_info = Round(1, 5, 6, 6, tensors)
        aggregated = algorithm.aggregate(uploads, weights, server, round_info)
        params = algorithm.server_step(server, aggregated.vectors, round_info)["params"]
    after = _loss_on(trainer, params, clips)
    if algorithm.personal:
        own = algorithm.own_network or "params"
        losses = [
            _loss_on(trainer, u.state.get(own, params), [clip], u.state.get("own"))
            for u, clip in zip(updates, clips, strict=True)
        ]
        after = sum(losses) / len(losses)
    part = 0.98 if "second_moment" in algorithm.server_state else 0.9
    require(after < part * before, f"from {before:.4f} to {after:.4f}, not below {part:g} of it")


CONTRACTS: tuple[Callable[[FedAvg, Path], None], ...] = (
    settings_can_be_sent,
    names_its_source_and_its_vectors,
    weights_follow_their_client,
    equal_clients_weigh_the_same_and_give_their_own_vector,
    the_server_changes_no_argument_and_stays_if_no_client_moved,
    order_of_clients_does_not_matter,
    slices_give_the_bits_of_the_whole_if_it_says_so,
    descending_the_local_loss_lowers_it,
    takes_the_detail_loss_and_the_proximal_term,
    a_round_of_training_is_whole_and_repeats,
    a_round_lowers_the_loss,
)


def _own(algorithm: FedAvg) -> tuple[str, ...]:
    return ("own",) if algorithm.config.share or algorithm.config.keep else ()


def _fitting(algorithm: FedAvg) -> FedAvg:
    """The method with a part that the small network has, if it keeps or shares one that is lacking.

    FedBN keeps the normalisation layers, of which the network has none.
    """
    config, parts = algorithm.config, tiny.spec(_MODEL).parts
    if set(config.share) | set(config.keep) <= set(parts):
        return algorithm
    return algorithms.build(config.model_copy(update={"share": (), "keep": ("head",)}))


def _report(client_id: int, loss: float, num_samples: int = 4) -> ClientReport:
    course = (client_id, 1, num_samples, 2, loss, loss, 0.1, loss, 0.1, 2.0)
    counts = {"label": num_samples, f"of {num_samples}": 1}
    return ClientReport(*course, lipschitz=1, update_norm=1, label_counts=counts)


def _clips(folder: Path) -> list[Clip]:
    return samples.clips(folder, num_clips=6, clip_frames=4, height=48, width=64)


def _loss_on(
    trainer: LocalTrainer,
    params: FloatVector,
    clips: Sequence[Clip],
    own: FloatVector | None = None,
) -> float:
    """Mean L_VSR over whole clips."""
    trainer.parameters.load(params, own)
    losses = []
    for clip in clips:
        lq, gt = (
            torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)[None] / 255
            for frames in (clip.lq(), clip.gt())
        )
        with torch.no_grad():
            losses.append(charbonnier(trainer.network(lq), gt).item())
    return sum(losses) / len(losses)
