"""The scores of a run's rounds, which are made while the next round trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fedvsr.config import ExperimentConfig
from fedvsr.federation.executors import Fault, Pending, Scorer
from fedvsr.federation.privacy import epsilon
from fedvsr.federation.rounds import RoundFinished, RunState
from fedvsr.files import replacing
from fedvsr.inference.scores import Scored
from fedvsr.params import FloatVector
from fedvsr.recording import RunRecords
from fedvsr.runs import rows
from fedvsr.runs.events import RoundRecorded
from fedvsr.runs.networks import Networks
from fedvsr.runs.pace import round_s
from fedvsr.runs.run import Run


@dataclass(frozen=True)
class _Unscored:
    """A trained round that waits for its scores."""

    event: RoundRecorded
    pending: list[tuple[int | None, Pending]]
    """Pairs of a client id and its scores, which several clients may share."""
    begun: list[Pending]
    """Those that were begun for this round; the others are an earlier round's."""

    def ready(self) -> bool:
        return all(pending.ready() for _, pending in self.pending)


class RoundScores:
    """Scores one round at a time, and records it once its scores have arrived.

    Args:
        run: the run.
        records: its tables.
        networks: what is scored.
        record_fault: records a fault, and returns it as an event.
    """

    scorer: Scorer
    """Set before the first round."""

    def __init__(
        self,
        run: Run,
        records: RunRecords,
        networks: Networks,
        record_fault: Callable[[Fault], Fault],
    ) -> None:
        self._run, self._records, self._networks = run, records, networks
        self._record_fault = record_fault
        self._unscored: _Unscored | None = None
        # By client: the version of its network, and the scores of that network.
        self._known = dict[int | None, tuple[int, Pending]]()

    def is_due(self, round_idx: int) -> bool:
        """Whether a round's network is scored; that of the last round always is."""
        config = self._run.config
        last = config.federation.num_rounds
        return round_idx % config.evaluation.every_rounds == 0 or round_idx == last

    def begin(self, state: RunState, finished: RoundFinished | None = None) -> None:
        """Start to score a state, if its round is due.

        Args:
            state: what to score.
            finished: the round that made it; None before training, and in a resumed run whose last
                scores were lost.
        """
        round_idx, config = state.round_idx, self._run.config
        if finished is None:
            self._records.begin_round(round_idx, epsilon_after(config, round_idx))
            event = RoundRecorded(round_idx, [], None, [], 0.0)
        else:
            event = RoundRecorded(
                round_idx,
                [report.client_id for report in finished.reports],
                rows.mean([o.report.loss for o in finished.outcomes if o.accepted]),
                [],
                round_s(finished.gap_s, finished.train_s, rows.first_step_s(finished)),
                rows.slot_utilisation(finished),
                **rows.shortfall(
                    finished, config.federation.model_dump(), self._networks.num_clients
                ),
            )
        pending, begun = self._score(state) if self.is_due(round_idx) else ([], [])
        self._unscored = _Unscored(event, pending, begun)

    def settle_if_ready(self) -> Iterator[RoundRecorded | Fault]:
        """Write the scores of the round before, if they have arrived."""
        if self._unscored and self._unscored.ready():
            yield from self.settle()

    def settle(self) -> Iterator[RoundRecorded | Fault]:
        """Wait for the pending scores and write them: the round's record is then complete."""
        if self._unscored is None:
            return
        unscored, self._unscored = self._unscored, None
        event = unscored.event
        results = [(client_id, pending.result()) for client_id, pending in unscored.pending]
        for kind, message in self.scorer.take_faults():
            yield self._record_fault(Fault(event.round_idx, None, kind, message))
        # Before the scores: a round with scores in the tables is not scored again.
        for _, scored in results:
            self._save_pictures(scored)
        scores = [(client_id, score) for client_id, scored in results for score in scored.scores]
        score_rows = [{"client_id": client_id, **score.row()} for client_id, score in scores]
        evaluate_s = sum(pending.result().wall_s for pending in unscored.begun)
        means = rows.mean_row([score for _, score in scores])
        self._records.write_scores(event.round_idx, {**means, "evaluate_s": evaluate_s}, score_rows)
        yield replace(event, scores=[s for _, s in scores], wall_s=event.wall_s or evaluate_s)

    def save_pictures(self, whole: FloatVector) -> None:
        """Keep a frame of each test clip as a network (P,) makes it."""
        self._save_pictures(self.scorer.score(whole).result())

    def _save_pictures(self, scored: Scored) -> None:
        frames = self._run.folder / "frames"
        frames.mkdir(exist_ok=True)
        for name, content in scored.pictures.items():
            with replacing(frames / name) as aside:
                aside.write_bytes(content)

    def _score(self, state: RunState) -> tuple[list[tuple[int | None, Pending]], list[Pending]]:
        """Scores of the global network or, for personal methods, of every client's own.

        Returns:
            `_Unscored.pending` and `_Unscored.begun`.
        """
        networks = self._networks
        if not networks.personal:
            scores = self.scorer.score(networks.of_server(state.params))
            return [(None, scores)], [scores]
        pending, begun = list[tuple[int | None, Pending]](), list[Pending]()
        for client_id in range(networks.num_clients):
            # Clients that have not trained yet share the network that all start from.
            key = client_id if networks.trained(client_id) else None
            version = networks.version(client_id, state.round_idx)
            known = self._known.get(key)
            if known is None or known[0] != version:
                whole = networks.of_client(client_id, state.params)
                # The pictures of a personal method are the first client's.
                scores = self.scorer.score(whole, pictures=client_id == 0)
                known = self._known[key] = version, scores
                begun.append(scores)
            pending.append((client_id, known[1]))
        return pending, begun


def epsilon_after(config: ExperimentConfig, num_rounds: int) -> float | None:
    """Privacy loss epsilon after a number of rounds; None without noise."""
    if not config.update.noise_multiplier:
        return None
    return epsilon(config.update, config.federation, config.data.num_clients, num_rounds)
