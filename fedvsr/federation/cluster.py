"""Where a run's clients are placed."""

from __future__ import annotations

from pydantic import Field

from fedvsr.section import Section


class ClusterConfig(Section):
    """Where clients run. Nothing here changes a number."""

    slots: int | None = Field(
        None, ge=1, description="Clients that train at once (default: as many as fit)."
    )
    gpu_share: float | None = Field(
        None, ge=0, le=1, description="GPU share of a client (default: 1, or 0 without a GPU)."
    )
    max_live_clients: int = Field(
        8, ge=1, description="Client processes kept for later rounds; each holds about 0.4 GB."
    )
    max_retries: int = Field(
        2, ge=0, description="Times a client whose process died is started again in a round."
    )
    client_state_bytes: int = Field(
        2**30,
        ge=0,
        description="Memory for what clients remember (scaffold); the rest waits on disk, bytes.",
    )
