"""Where a run's clients are placed."""

from __future__ import annotations

from pydantic import Field

from fedvsr.errors import UserError
from fedvsr.section import Section

# Ray's label of a node's kind of GPU.
GPU_LABEL = "ray.io/accelerator-type"


class ClusterConfig(Section):
    """Where clients run. Nothing here changes a number."""

    slots: int | None = Field(
        None,
        ge=1,
        description="Clients that train at once (default: as many as fit, a cohort at most).",
    )
    accelerator: str | None = Field(
        None,
        description="Kind of GPU by Ray's label ray.io/accelerator-type, e.g. RTX-A6000 (default: "
        "any).",
    )
    clients_per_gpu: int = Field(1, ge=1, le=64, description="Clients that share a GPU in time.")
    gpu_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPU share that a client's process holds, also while it waits: 0.1 lets ten "
        "live on a GPU (default: 0.1 or less, as clients_per_gpu asks; 0 without a GPU).",
    )
    max_live_clients: int = Field(
        8,
        ge=1,
        description="Client processes kept or built ahead for later rounds; each holds about "
        "0.4 GB.",
    )
    max_retries: int = Field(
        2, ge=0, description="Times a client that failed, or the driver, is started again."
    )
    client_timeout_s: float | None = Field(
        None,
        gt=0,
        description="A client that takes longer, the start of its process included, is "
        "taken for hung (default: no limit).",
    )
    placement_timeout_s: float = Field(
        30.0, gt=0, description="How long to wait for what others hold of the cluster."
    )
    client_state_bytes: int = Field(
        2**30,
        ge=0,
        description="Memory for what clients remember (scaffold); the rest waits on disk, bytes.",
    )

    def model_post_init(self, _: object) -> None:
        """Check that those who share a GPU fit on it."""
        if self.gpu_share is not None and self.clients_per_gpu * self.gpu_share > 1:
            raise UserError(
                f"cluster.gpu_share = {self.gpu_share:g} leaves no room for "
                f"cluster.clients_per_gpu = {self.clients_per_gpu}; lower one of them"
            )
