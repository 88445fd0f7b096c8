"""The faces that pyinfra's generations know connectors by, and the choice between them."""

from __future__ import annotations

from importlib import metadata
from typing import Any

__all__ = ["choose_face"]


def choose_face() -> Any:  # noqa: ANN401 - a class for pyinfra 3
    """Return the connector in the form that the installed pyinfra wants.

    Raises:
        ImportError: that pyinfra is not supported; the text names the versions that are.
    """
    version = metadata.version("pyinfra")
    if version.split(".")[0] != "3":
        raise ImportError(f"the agent connector works with pyinfra 3, not with {version}: pip install 'pyinfra>=3,<4'")
    from .v3 import AgentConnector

    return AgentConnector
