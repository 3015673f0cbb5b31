"""The `cluster` section: where a run's clients are placed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedvsr.errors import UserError
from fedvsr.section import Section

# Ray's label of a node's kind of GPU.
GPU_LABEL = "ray.io/accelerator-type"


Isolation = Literal["client", "slot"]
AUTO: Literal["auto"] = "auto"
"""The value of `clients_per_gpu` that lets a run measure how many clients fit."""


class ClusterConfig(Section):
    """Where clients run. Nothing here changes a number."""

    slots: int | None = Field(
        None,
        ge=1,
        description="Clients that train at once (default: as many as fit, at most a cohort).",
    )
    accelerator: str | None = Field(
        None,
        description="Kind of GPU to use, by Ray's label ray.io/accelerator-type, e.g. RTX-A6000 "
        "(default: any).",
    )
    clients_per_gpu: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        1,
        description="Clients that train on a GPU at once; auto: as many as keep it busy and fit "
        "into its memory, from a measured step.",
    )
    gpu_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of a GPU that a client's process holds, even while it waits: with 0.1, "
        "ten fit on a GPU (default: 0.1, or less if clients_per_gpu needs it; 0 without a GPU).",
    )
    isolation: Isolation = Field(
        "client",
        description="`client`: a process for each client, which is sent that client's clips alone. "
        "`slot`: a process for each slot, which trains one client after the other; for simulations "
        "with large cohorts, because a round then starts no process.",
    )
    max_live_clients: int = Field(
        8,
        ge=1,
        description="Client processes kept, or started early, for later rounds; each takes about "
        "0.3 GB. No effect with isolation `slot`.",
    )
    max_retries: int = Field(
        2, ge=0, description="Retries of a failed client, and restarts of the driver."
    )
    client_timeout_s: float | None = Field(
        None,
        gt=0,
        description="Seconds, including the start of its process, after which a client counts as "
        "hung (default: no limit).",
    )
    placement_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Seconds to wait for resources of the cluster that others are using.",
    )
    aggregation_shards: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Slices of the parameter vector that are combined apart, each on a node of its "
        "own if there are enough; 1 combines all in the driver (default: as many as nodes with "
        "slots, but none below 16 MiB, if the algorithm combines coordinate by coordinate; 1 with "
        "data.owners: an owner's updates then reach no other owner's node).",
    )
    client_state_bytes: int = Field(
        2**30,
        ge=0,
        description="Bytes of memory for what clients remember (scaffold), on all nodes together; "
        "the rest is on disk.",
    )

    @property
    def num_per_gpu(self) -> int:
        """`clients_per_gpu`; 1 as long as `auto` is not replaced by a number."""
        return 1 if self.clients_per_gpu == AUTO else self.clients_per_gpu

    def model_post_init(self, _: object) -> None:
        """Check that the clients which share a GPU fit on it."""
        if self.gpu_share is not None and self.num_per_gpu * self.gpu_share > 1:
            raise UserError(
                f"cluster.gpu_share = {self.gpu_share:g} leaves no room for "
                f"cluster.clients_per_gpu = {self.clients_per_gpu}; lower one of them"
            )
