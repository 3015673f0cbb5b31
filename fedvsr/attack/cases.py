"""What is attacked: one client's update, sent with and without each protection.

All cases but the last are of one small step, the easiest one for the attacker. The last is the
update that the run's client sent. A secure sum hides a client's update, so what is attacked then is
the sum of the round's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedvsr import models
from fedvsr.algorithms.base import FedAvg
from fedvsr.attack.invert import Effort, Target, invert, mean_colour, target_frames
from fedvsr.attack.replay import Replay
from fedvsr.data.degrade import quantise
from fedvsr.data.sampling import passes, read_batch
from fedvsr.errors import UserError
from fedvsr.federation.aggregation import RoundSum
from fedvsr.federation.executors import ClientOutcome, TrainedClient
from fedvsr.federation.masking import LEAST_CLIENTS, sum_here
from fedvsr.federation.privacy import add_noise
from fedvsr.layout import NOT_SHARED
from fedvsr.messages import ClientReport, Round
from fedvsr.metrics.fidelity import MIN_SIDE, fidelity
from fedvsr.metrics.psnr import psnr
from fedvsr.params import FloatVector, load_flat
from fedvsr.seeding import derive_seed
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import count_steps
from fedvsr.training.requirements import model_spec
from fedvsr.training.updates import UNCHANGED, UpdateConfig, incoming

Frame = npt.NDArray[np.uint8]
Progress = Callable[[str, int, int], None]

NOISE = (0.001, 0.01, 0.1)
"""Noise multipliers to show."""
# Steps and samples of the cases that mix frames.
_MANY = 4


@dataclass(frozen=True)
class Case:
    """One way in which a client makes and sends its update."""

    name: str
    label: str
    """A few words."""
    local: LocalConfig | None = None
    """How the client trains; None: as in the run."""
    update: UpdateConfig = UNCHANGED
    noise: float = 0.0
    """Noise multiplier."""

    @property
    def summed(self) -> bool:
        """Whether the server reads the sum of the round's updates alone."""
        return self.update.secure_sum


@dataclass(frozen=True)
class Result:
    """What the attack found in a case. Frames are uint8 (H, W, 3)."""

    case: Case
    lq: Frame
    gt: Frame
    """What the client, or those of the sum, trained on: of several frames, the one nearest to the
    reconstruction."""
    lq_found: Frame
    gt_found: Frame
    scores: dict[str, float | None]
    """PSNR and SSIM of both; `lq_flat_psnr_db` and `gt_flat_psnr_db` are those of a picture of the
    frame's mean colour, which a reconstruction must exceed. SSIM is None for
    frames below 11 pixels."""
    mismatch: float
    """How far the guess's gradient is from the update, see `Guess`."""
    num_samples: int
    """Samples of the update, or of all of a secure sum."""
    report: ClientReport
    """What the client reported."""
    colour: list[float] | None
    """Mean colour of the frame in closed form, see `mean_colour`."""


def make_cases(replay: Replay, client_id: int, crop: int) -> list[Case]:
    """The cases of a client: one of each kind of protection.

    Raises:
        UserError: the run's method changes gradients, so that its updates need another attack; or
            the crop does not suit the network or the clips.
    """
    config, kind = replay.config, type(replay.algorithm)
    if kind.correct_gradients is not FedAvg.correct_gradients:
        raise UserError(
            f"{replay.run_id} has algorithm.name = {config.algorithm.name}, which changes "
            "gradients: the attack does not know how, so it would prove nothing"
        )
    step = _one_step(replay, client_id, crop)
    plain, _ = replay.train(client_id, step)
    # Half the length, so that clipping acts.
    clipped = UpdateConfig(clip_norm=plain.update_norm / 2)
    several = {"steps": _MANY, "batch_size": 1}
    return [
        Case("plain", "as it is", step),
        Case("clip", "clipped to half its length", step, clipped),
        *(Case(f"noise-{m:g}", f"clipped, noise {m:g}", step, clipped, m) for m in NOISE),
        Case("int8", "compressed to 8 bits", step, _packed("int8")),
        Case("top-k", "its largest 1 %", step, _packed("top_k")),
        *_secure(replay, step),
        Case("adam", "a step of Adam", step.model_copy(update={"optimizer": "adam"})),
        Case(
            "batch", f"{_MANY} samples in the step", step.model_copy(update={"batch_size": _MANY})
        ),
        Case("steps", f"{_MANY} steps, a sample each", step.model_copy(update=several)),
        Case("run", _as_run(config.update), None, config.update),
    ]


def _secure(replay: Replay, step: LocalConfig) -> list[Case]:
    """The secure sum of the round's clients, unless there is but one."""
    count = len(replay.recorded)
    if count < LEAST_CLIENTS:
        return []
    label = f"secure sum: {count} clients' updates"
    return [Case("secure-sum", label, step, UpdateConfig(secure_sum=True))]


def _as_run(update: UpdateConfig) -> str:
    return (
        "the sum as the run's server read it"
        if update.secure_sum
        else "as the run's client sent it"
    )


def attack(
    replay: Replay, client_id: int, cases: Sequence[Case], effort: Effort, progress: Progress
) -> Iterator[Result]:
    """Attack each case in turn.

    Args:
        replay: the round.
        client_id: a client of the round.
        cases: of `make_cases`.
        effort: how hard the attack tries.
        progress: called with what is attacked, the iterations done and their number, of all cases.
    """
    each = effort.iterations * effort.starts
    for number, case in enumerate(cases):
        tick = partial(_tick, progress, case.label, number * each, len(cases) * each)
        tick(0)
        yield _attack(replay, client_id, case, effort, tick)


def _tick(progress: Progress, label: str, before: int, total: int, done: int) -> None:
    # A terminal takes as long to draw as the network to compute.
    if done % 20 == 0:
        progress(label, before + done, total)


def _attack(
    replay: Replay, client_id: int, case: Case, effort: Effort, tick: Callable[[int], None]
) -> Result:
    config = replay.config
    local = case.local or config.local
    report, received = received_of(replay, client_id, case)
    if case.noise:
        noisy = case.update.model_copy(update={"noise_multiplier": case.noise})
        seed = derive_seed(effort.seed, "noise")
        received = add_noise(received, noisy, 1, seed, replay.round_idx)
    network = models.build_fresh(config.model).train()
    # The attacker knows only the first values of parameters that a client keeps.
    load_flat(network, replay.layout.whole(replay.params, replay.rest))
    for parameter in replay.layout.params(network, *NOT_SHARED):
        parameter.requires_grad_(False)
    sparse = case.update.compression == "top_k"
    signs = local.optimizer != "sgd" and report.num_steps == 1
    target = Target(replay.params - received, network, sparse, signs)
    spec = model_spec(config.model)
    frames = -(-spec.min_frames // spec.frames_multiple) * spec.frames_multiple
    side = local.crop // spec.scale
    guess = invert(network, target, (frames, side, side), effort, tick)
    gt = target_frames(network, guess, replay.algorithm, spec.charbonnier_eps, report.first_loss)
    lq_found, gt_found = _picture(guess.lq), _picture(gt)
    seen = replay.recorded if case.summed else [client_id]
    samples = [sample for i in seen for sample in _samples(replay, i, local)]
    lq, truth = _nearest(samples, lq_found)
    colour = None if signs else mean_colour(network, target.tensors)
    return Result(
        case,
        lq,
        truth,
        lq_found,
        gt_found,
        _scores(lq_found, lq, gt_found, truth),
        guess.mismatch,
        len(samples),
        report,
        None if colour is None else colour.tolist(),
    )


def received_of(replay: Replay, client_id: int, case: Case) -> tuple[ClientReport, FloatVector]:
    """What a client reports, and the parameters (P,) that the server reads.

    They are the client's or, of a secure sum, those that the round would end in.
    """
    update = case.update if case.local else None
    if not case.summed:
        report, sent = replay.train(client_id, case.local, update)
        return report, incoming(sent.upload["params"], replay.params)
    trained = {i: replay.train(i, case.local, update) for i in replay.recorded}
    clients = [TrainedClient(ClientOutcome(report), sent) for report, sent in trained.values()]
    # The run's own weights count where the run's own updates are summed.
    rows = replay.recorded.values()
    weights = [1 / len(clients) if case.local else row["weight"] or 0.0 for row in rows]
    num_rounds = replay.config.federation.num_rounds
    info = Round(replay.round_idx, num_rounds, len(replay.clips), len(clients), ())
    work = RoundSum(replay.algorithm, clients, weights, replay.server, info)
    return trained[client_id][0], sum_here(work, case.update).vectors["params"]


def _samples(replay: Replay, client_id: int, local: LocalConfig) -> Iterator[tuple[Frame, Frame]]:
    """The middle frames of what a client trained on, low-resolution and ground truth."""
    clips, seed = replay.clips[client_id], derive_seed(replay.task(client_id).seed, "samples")
    for draws in islice(passes(clips, seed, local.batch_size), count_steps(local, clips)):
        lq_BTCHW, gt_BTCHW = read_batch(draws, local.sample_shape)
        middle = local.num_frames // 2
        for lq_TCHW, gt_TCHW in zip(lq_BTCHW, gt_BTCHW, strict=True):
            yield _upright(lq_TCHW[middle]), _upright(gt_TCHW[middle])


def _nearest(samples: Iterable[tuple[Frame, Frame]], found: Frame) -> tuple[Frame, Frame]:
    """The sample whose low-resolution frame a reconstruction resembles most."""
    return max(samples, key=lambda pair: float(psnr(found, pair[0])))


def _scores(lq_found: Frame, lq: Frame, gt_found: Frame, gt: Frame) -> dict[str, float | None]:
    scores = dict[str, float | None]()
    for name, found, truth in (("lq", lq_found, lq), ("gt", gt_found, gt)):
        flat = np.broadcast_to(np.rint(truth.mean((0, 1))).astype(np.uint8), truth.shape)
        whole = min(truth.shape[:2]) >= MIN_SIDE
        scores[f"{name}_psnr_db"] = float(psnr(found, truth))
        scores[f"{name}_ssim"] = fidelity(found, truth)["ssim"] if whole else None
        scores[f"{name}_flat_psnr_db"] = float(psnr(flat, truth))
    return scores


def _picture(frames_BTCHW: Tensor) -> Frame:
    """The middle frame of a reconstruction."""
    frame = frames_BTCHW[0, frames_BTCHW.shape[1] // 2]
    return quantise(frame.permute(1, 2, 0).numpy())


def _upright(frame_CHW: Tensor) -> Frame:
    return np.ascontiguousarray(frame_CHW.permute(1, 2, 0).numpy())


def _packed(kind: Literal["int8", "top_k"]) -> UpdateConfig:
    return UpdateConfig(compression=kind, error_feedback=False)


def _one_step(replay: Replay, client_id: int, crop: int) -> LocalConfig:
    """Settings of a step of SGD on one sample of as few frames as the network takes."""
    config = replay.config
    spec = model_spec(config.model)
    frames = -(-spec.min_frames // spec.frames_multiple) * spec.frames_multiple
    if crop % spec.scale:
        raise UserError(f"--crop {crop} is not a multiple of the scale, {spec.scale}")
    try:
        spec.require_sample(frames, crop // spec.scale, config.model.name)
    except UserError as error:
        raise UserError(f"--crop {crop}: {error}") from None
    for clip in replay.clips[client_id]:
        if min(clip.height, clip.width) < crop:
            raise UserError(
                f"--crop {crop} is larger than clip {clip.clip_id} ({clip.width} x "
                f"{clip.height}); lower it"
            )
    return config.local.model_copy(
        update={
            **{"steps": 1, "batch_size": 1, "num_frames": frames, "crop": crop, "interval": 1},
            **{"mirror": False, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
            **{"precision": "fp32", "compile": False, "freeze_steps": 0, "num_workers": 0},
        }
    )
