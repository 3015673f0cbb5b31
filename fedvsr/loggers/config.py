"""The section `logging`, and whether what it names is installed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from fedvsr.errors import UserError
from fedvsr.section import Section

_WANDB_NAME = r"^[^/\\#?%:]+$"
# The package that each logger imports.
_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


class MlflowConfig(Section):
    """A run of MLflow."""

    tracking_uri: str | None = Field(
        None,
        min_length=1,
        description="Server, database or folder, e.g. sqlite:///mlflow.db (default: "
        "MLFLOW_TRACKING_URI, or else mlflow.db in the folder of results). A relative path begins "
        "in the folder of the command.",
    )
    experiment: str | None = Field(
        None, min_length=1, description="Experiment of MLflow (default: the run's `name`)."
    )


class WandbConfig(Section):
    """A run of Weights & Biases."""

    project: str = Field(
        "fedvsr", pattern=_WANDB_NAME, max_length=128, description="Project that it belongs to."
    )
    entity: str | None = Field(
        None, min_length=1, description="User or team (default: the user's own)."
    )
    group: str | None = Field(None, min_length=1, description="Group of runs in the project.")
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="offline: only write files, which `wandb sync` sends later (default: "
        "WANDB_MODE, or else online).",
    )


class LoggingConfig(Section):
    """Where curves, pictures and the last scores go besides the run's folder."""

    tensorboard: bool = Field(
        False, description="Write TensorBoard's files to `tensorboard/` in the run's folder."
    )
    mlflow: MlflowConfig | None = Field(
        None, description="Log to MLflow (extra `mlflow`); {} takes the defaults."
    )
    wandb: WandbConfig | None = Field(
        None, description="Log to Weights & Biases (extra `wandb`); {} takes the defaults."
    )

    @property
    def chosen(self) -> list[str]:
        """The loggers that are switched on, by name."""
        return [name for name in _PACKAGES if getattr(self, name) not in (None, False)]


def require_packages(config: LoggingConfig) -> None:
    """Check that the loggers' packages are installed, before anything starts.

    Raises:
        UserError: one is missing; the message says how to install it.
    """
    for name in config.chosen:
        if find_spec(_PACKAGES[name]) is None:
            raise UserError(
                f"logging.{name} needs the package {_PACKAGES[name]}: pip install 'fedvsr[{name}]'"
            )


def require_lasting(config: LoggingConfig) -> None:
    """Check that a job, whose own folder is removed, leaves what it logs.

    Raises:
        UserError: MLflow's files would be in that folder.
    """
    uri = config.mlflow.tracking_uri if config.mlflow else None
    path = re.sub(r"^(sqlite:///|file:(//)?)", "", uri or "/")
    if not path.startswith("/") and "://" not in path:
        raise UserError(
            f"logging.mlflow.tracking_uri = {uri} is relative, and a job runs in its own folder; "
            "give the absolute path on the cluster, or leave it out"
        )
