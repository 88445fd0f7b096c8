"""What stands after `@agent` as pyinfra's hosts: the same for every generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["names_data"]


def names_data(name: str | None) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Return name, data and groups of each host that *name*, the part after `@agent/`, asks for.

    Data and groups are fresh each time: pyinfra changes what it gets.

    Raises:
        InventoryError: *name* has no meaning, or nothing was found.
    """
    # Here, and not above: pyinfra loads every connector in every run, also where no host needs this one.
    from ._selectors import hosts_for

    return hosts_for(name)
