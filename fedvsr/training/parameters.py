"""A network's parameters by their roles: what is loaded, read, wiped, and what a step changes."""

from __future__ import annotations

from torch import nn

from fedvsr.errors import UserError
from fedvsr.layout import NOT_SHARED, Layout, Role
from fedvsr.params import FloatVector, join_tensors, load_params, wipe
from fedvsr.training.config import LocalConfig

_ALL: tuple[Role, ...] = ("shared", "own")


class Parameters:
    """The parameters of a network that clients train, P of them shared.

    Args:
        network: the network; what is frozen no longer requires gradients.
        layout: the role of each parameter.
        local: which parameters learn slowly, and from when on.
        rest: first values of the parameters that are not shared, in their order; None: those that
            the network has.

        name: the network's name, for the message.

    Raises:
        UserError: `local.slow_params` names no parameter.
    """

    def __init__(
        self,
        network: nn.Module,
        layout: Layout,
        local: LocalConfig,
        rest: FloatVector | None,
        name: str,
    ) -> None:
        if rest is not None:
            load_params(layout.params(network, *NOT_SHARED), rest)
        for parameter in layout.params(network, "frozen"):
            parameter.requires_grad_(False)
        self.shared = layout.params(network, "shared")
        self.own = layout.params(network, "own")
        self.trained = layout.params(network, *_ALL)
        """The shared ones and the client's own, in the module's order."""
        self._first_own = join_tensors(self.own)
        self._freeze_steps, self._learning = local.freeze_steps, _ALL
        self._slow = list[tuple[nn.Parameter, Role]]()
        roles = zip(network.named_parameters(), layout.roles, strict=True)
        named = [(own_name, parameter, role) for (own_name, parameter), role in roles]
        for part in local.slow_params:
            matches = [(p, role) for own_name, p, role in named if part in own_name]
            if not matches:
                raise UserError(f"local.slow_params: {part!r} is in no parameter of {name}")
            self._slow += [(p, role) for p, role in matches if role != "frozen"]

    @property
    def slow(self) -> list[nn.Parameter]:
        """Those that learn slowly."""
        return [parameter for parameter, _ in self._slow]

    def load(self, params: FloatVector, own: FloatVector | None = None) -> None:
        """Load the shared parameters (P,), and those that stay with a client.

        Args:
            params: the shared ones.
            own: what the client keeps; None: the first values, until it has trained.
        """
        load_params(self.shared, params)
        load_params(self.own, self._first_own if own is None else own)

    def values(self) -> FloatVector:
        """A copy of the shared parameters (P,) as they are."""
        return join_tensors(self.shared)

    def wipe(self) -> None:
        """Set all that a client trains to zero, and drop the gradients."""
        wipe(self.trained)

    def thaw(self, step: int, learning: tuple[Role, ...] = _ALL) -> None:
        """Let those parameters learn that a step changes.

        Args:
            step: the step's place in the whole training.
            learning: the roles that it changes.
        """
        if learning != self._learning:
            self._learning = learning
            for role, params in (("shared", self.shared), ("own", self.own)):
                for parameter in params:
                    parameter.requires_grad_(role in learning)
        for parameter, role in self._slow:
            parameter.requires_grad_(role in learning and step >= self._freeze_steps)
