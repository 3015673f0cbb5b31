"""The networks, one a file: the file's name is the configuration's `model.name`.

A file holds `Config`, a section; `Model`, built from it alone, which maps low-resolution clips
`(B, T, 3, H, W)` in [0, 1] to `(B, T, 3, scale * H, scale * W)`; and `spec(config)`, its sizes.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fedvsr.lookup import load


def build(name: str, **config: Any) -> nn.Module:
    """Build the network `name` from its configuration keys, with fresh weights.

    Raises:
        UserError: there is no such network.
        pydantic.ValidationError: a key is unknown or its value out of bounds.
    """
    module = load(__name__, name)
    network: nn.Module = module.Model(module.Config(**config))
    return network
