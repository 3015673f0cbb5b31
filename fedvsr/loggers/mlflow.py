"""MLflow: one run of its own for each run here, which a resumed run continues."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from fedvsr.loggers.config import MlflowConfig
from fedvsr.loggers.feed import Ending, Round
from fedvsr.loggers.subject import CONFIG_FILE, Subject

# The tag by which a resumed run finds its run of MLflow, and the metric that every round has.
_TAG, _ROUND = "fedvsr.run_id", "round_idx"
_MAX_PARAM = 500
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_ENVIRONMENT = {
    # By default a request waits 120 s and is repeated 7 times.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # Whoever names a folder has chosen it; MLflow would rather have a database.
    "MLFLOW_ALLOW_FILE_STORE": "true",
    # Nothing is sent anywhere but to the server that was chosen.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Mlflow:
    """Logs a run to MLflow.

    Args:
        config: the server and the experiment.
        subject: the run.
        given_up: set when nothing may be created any more; to set up a database takes long.

    Raises:
        TimeoutError: it was set meanwhile.
    """

    def __init__(self, config: MlflowConfig, subject: Subject, given_up: threading.Event) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        # It prints each step by which it sets up a database.
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._subject = subject
        results = subject.folder.parent
        uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None if uri else (results / "mlartifacts").as_uri()
        self._client: Any = MlflowClient(uri or f"sqlite:///{results / 'mlflow.db'}")
        name = config.experiment or str(subject.settings["name"])
        experiment_id = self._experiment(name, artifacts)
        found = self._find(experiment_id)
        if given_up.is_set():
            raise TimeoutError
        self._run_id = found or self._create(experiment_id)
        self.last_round = self._last_round()

    def _experiment(self, name: str, artifacts: str | None) -> str:
        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except Exception:
                # Another run has created it meanwhile, unless it is missing still.
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)

    def _find(self, experiment_id: str) -> str | None:
        """The run that an earlier process has logged to; it runs again."""
        wanted = f"tags.`{_TAG}` = '{self._subject.run_id}'"
        for run in self._client.search_runs([experiment_id], wanted, max_results=1):
            self._client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id)
        return None

    def _create(self, experiment_id: str) -> str:
        from mlflow.entities import Param

        subject = self._subject
        tags = {_TAG: subject.run_id, **subject.facts}
        run = self._client.create_run(experiment_id, tags=tags, run_name=subject.run_id)
        run_id = str(run.info.run_id)
        params = [Param(k, v[:_MAX_PARAM]) for k, v in subject.flat_settings().items()]
        # A request takes 100.
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])
        self._client.log_artifact(run_id, str(subject.folder / CONFIG_FILE))
        return run_id

    def _last_round(self) -> int:
        history = self._client.get_metric_history(self._run_id, _ROUND)
        return max((metric.step for metric in history), default=-1)

    def log(self, finished: Round) -> None:
        """Add a round's values; the last of them says that all of them are there."""
        from mlflow.entities import Metric

        now_ms, step = int(time.time() * 1000), finished.round_idx
        values = {**finished.values, _ROUND: float(step)}
        metrics = [Metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        self.last_round = step

    def end(self, ending: Ending) -> None:
        """Add the tables, the pictures and the last scores, and end the run."""
        for path in ending.tables:
            self._client.log_artifact(self._run_id, str(path), "tables")
        for picture in ending.pictures:
            self._client.log_artifact(self._run_id, str(picture.path), "frames")
        if ending.scores:
            columns = {key: [row[key] for row in ending.scores] for key in ending.scores[0]}
            self._client.log_table(self._run_id, columns, "scores.json")
        self._client.set_terminated(self._run_id, _STATUS[ending.status])
