"""The faces that pyinfra's generations know connectors by, and the choice between them."""

from __future__ import annotations

import re
from importlib import import_module, metadata
from typing import Any

__all__ = ["choose_face"]


def choose_face() -> Any:  # noqa: ANN401 - a class for pyinfra 3, a module for 1 and 2
    """Return the connector in the form that the installed pyinfra wants; it never fails.

    For a pyinfra that is too old or too new, the connector says so as soon as a host is to be reached by it.
    """
    version = metadata.version("pyinfra")
    numbers = re.match(r"(\d+)(?:\.(\d+))?", version)
    major, minor = (int(number or 0) for number in numbers.groups()) if numbers else (0, 0)
    if major == 3:
        from .v3 import AgentConnector

        return AgentConnector
    if major == 2:
        return import_module(".v2", __name__)
    if (major, minor) >= (1, 7) and major == 1:
        return import_module(".v1", __name__)
    from .unsupported import UnsupportedConnector

    return UnsupportedConnector(version)
