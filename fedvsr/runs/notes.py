"""What a person who starts a run should know about it."""

from __future__ import annotations

from fedvsr import models
from fedvsr.config import ExperimentConfig
from fedvsr.data.split import Split
from fedvsr.federation.privacy import delta_of, epsilon
from fedvsr.models.origin import licence_note, weights_source
from fedvsr.models.spec import RELEASED_FLOW


def notes_of(config: ExperimentConfig, split: Split) -> tuple[str, ...]:
    """Notes on a run, a sentence each; empty if there is nothing to say."""
    notes: tuple[str, ...] = config.algorithm.notes()
    if split.overlap:
        notes += (
            f"clients train on {len(split.overlap)} of the test clips: the scores say nothing "
            "about other videos",
        )
    if split.same_video:
        notes += (
            f"{len(split.same_video)} of {split.num_test_clips} test clips are parts of videos "
            f"that clients train on (data.gap_clips = {config.data.gap_clips}): the scores say "
            "less about other videos",
        )
    if config.cluster.isolation == "slot":
        notes += (
            "clients share processes, one after the other (cluster.isolation = slot): a simulation "
            "in which no client has a process of its own",
        )
    if config.update.noise_multiplier:
        num_clients = config.data.num_clients
        spent = epsilon(config.update, config.federation, num_clients, config.federation.num_rounds)
        notes += (
            f"after all rounds a client is protected with epsilon = {spent:.3g} at delta = "
            f"{delta_of(config.update, num_clients):.2g}; the noise follows from the seed, so keep "
            "the seed, this record and the reported losses to yourself",
        )
    if config.local.train and config.model.weights is None:
        notes += (
            f"local.train = [{', '.join(config.local.train)}]: all else stays as it is drawn at "
            "random; model.weights=PATH starts from a trained network",
        )
    if source := weights_source(config.model):
        notes += (licence_note(source),)
    if not models.flow_from_scratch(config.model):
        return notes
    note = (
        "optical flow starts from scratch; model.flow_weights=PATH loads SpyNet's released weights "
        f"({RELEASED_FLOW})"
    )
    return (note, *notes)
