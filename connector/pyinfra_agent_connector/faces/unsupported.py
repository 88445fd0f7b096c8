"""The face for a pyinfra that no other face knows: it says so when a host asks for it, and is in nobody's way else."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["UnsupportedConnector"]


class UnsupportedConnector:
    """A connector that has no hosts.

    pyinfra loads every connector in every run: an exception there would end the runs of all other hosts.
    """

    #: For pyinfra 3 and what comes after; pyinfra 1 looks for EXECUTION_CONNECTOR, pyinfra 2 for Meta.
    handles_execution = False

    def __init__(self, version: str) -> None:
        self._version = version

    def make_names_data(self, name: str | None = None) -> NoReturn:
        """Refuse.

        Raises:
            InventoryError: which pyinfra shows as one line.
        """
        text = (
            f"the agent connector works with pyinfra 1.7 to 3, not with {self._version}: pip install 'pyinfra>=1.7,<4'"
        )
        try:
            from pyinfra.api.exceptions import InventoryError
        except ImportError:
            raise RuntimeError(text) from None
        raise InventoryError(text)
