"""The scope of torch's own draws."""

from __future__ import annotations

import torch

from fedvsr.determinism import scoped_torch


def test_a_scope_draws_as_torch_does_and_leaves_nothing() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(5)
    after = torch.rand(4)
    torch.manual_seed(5)
    # Without a GPU, torch keeps a call with a stack trace for each `torch.manual_seed`.
    num_kept = len(torch.cuda._queued_calls)
    for _ in range(3):
        with scoped_torch(3, num_threads=1):
            assert torch.equal(torch.rand(4), expected)
    assert len(torch.cuda._queued_calls) == num_kept
    assert torch.equal(torch.rand(4), after), "the draws outside are those without a scope"
