"""What a job would log into its own folder."""

from __future__ import annotations

import pytest

from fedvsr.errors import UserError
from fedvsr.loggers.config import LoggingConfig, require_lasting


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "mlruns", "./mlruns", "file:mlruns"])
def test_a_job_must_not_log_into_its_own_folder(uri: str) -> None:
    config = LoggingConfig.model_validate({"mlflow": {"tracking_uri": uri}})
    with pytest.raises(UserError, match="is relative, and a job runs in its own folder"):
        require_lasting(config)


@pytest.mark.parametrize(
    "uri", ["sqlite:////data/mlflow.db", "/data/mlruns", "file:///data/m", "https://host/", None]
)
def test_a_job_may_log_elsewhere(uri: str | None) -> None:
    require_lasting(LoggingConfig.model_validate({"mlflow": {"tracking_uri": uri}}))
    require_lasting(LoggingConfig())
