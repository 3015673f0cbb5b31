"""Makes the networks take the path of a GPU without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from fedvsr.models import _attention, _windows
from fedvsr.models.rvrt import network as rvrt


@contextmanager
def on_the_gpu_path() -> Iterator[None]:
    """Use the kernels for all tensors, in Triton's interpreter or on the meta device."""
    with (
        mock.patch.object(_windows, "fused", return_value=True),
        mock.patch.object(_attention, "fused", return_value=True),
        mock.patch.object(rvrt, "fused", return_value=True),
    ):
        yield
