"""The whole networks of a run: the server's and, with personal methods, each client's.

P is the number of parameters, S of those that are shared.
"""

from __future__ import annotations

import numpy as np

from fedvsr.algorithms.base import FedAvg
from fedvsr.federation.client_states import ClientStates
from fedvsr.layout import NOT_SHARED, Layout
from fedvsr.params import FloatVector


class Networks:
    """Puts networks together from what is shared, what a client keeps, and what never changes.

    Args:
        layout: which parameters are shared.
        algorithm: says which network is a client's own.
        states: what clients keep.
        num_clients: registered clients.
    """

    def __init__(
        self, layout: Layout, algorithm: FedAvg, states: ClientStates, num_clients: int
    ) -> None:
        self._layout, self._algorithm, self._states = layout, algorithm, states
        self.num_clients = num_clients
        self.rest = np.empty(0, np.float32)
        """First values of the parameters that are not shared (P - S,)."""

    @property
    def personal(self) -> bool:
        """Whether each client has a network of its own."""
        return self._algorithm.personal

    def begin(self, whole: FloatVector) -> FloatVector:
        """Keep what is not shared of the network (P,) that a run begins from; returns the rest."""
        self.rest = self._layout.take(whole, *NOT_SHARED)
        return self._layout.take(whole, "shared")

    def of_server(self, params: FloatVector) -> FloatVector:
        """The network (P,) of the server, whose shared parameters (S,) are `params`."""
        return self._layout.whole(params, self.rest)

    def of_client(self, client_id: int, params: FloatVector) -> FloatVector:
        """The network (P,) of a client; `params` are the server's shared parameters (S,)."""
        state = self._states.get(client_id)
        if self._algorithm.own_network:
            params = state.get(self._algorithm.own_network, params)
        return self._layout.whole(params, self.rest, state.get("own"))

    def trained(self, client_id: int) -> bool:
        """Whether a client has a network that differs from that of clients that never trained."""
        return self._states.round_of(client_id) is not None

    def version(self, client_id: int, round_idx: int) -> int:
        """The round that last changed a client's network, up to round `round_idx`."""
        trained_in = self._states.round_of(client_id)
        if self._algorithm.own_network is None or (trained_in is None and self._algorithm.upload):
            # The shared part, with which clients begin, changes in every round.
            return round_idx
        return trained_in or 0
