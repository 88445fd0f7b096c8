"""The `agent` connector for pyinfra: `pyinfra @agent/HOST ...` instead of `pyinfra HOST ...`.

`connector` is what pyinfra's entry point loads.  It is made when it is first asked for, because an
import error here would break pyinfra for every host, and because each generation of pyinfra wants
another face (`faces`).  `enrol` and `unenrol` are operations: they bring the agent to a machine that
is reached by another connector, and take it away (`enrolment`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .enrolment import enrol, unenrol
    from .faces.v3 import AgentConnector as connector

__all__ = ["connector", "enrol", "unenrol"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what a module's attribute is depends on its name
    if name in ("enrol", "unenrol"):
        from importlib import metadata

        if not metadata.version("pyinfra").startswith("3."):
            raise ImportError(f"{name} is for pyinfra 3, and this is pyinfra {metadata.version('pyinfra')}")
        from . import enrolment

        return getattr(enrolment, name)
    if name != "connector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .faces import choose_face

    face = choose_face()
    # From now on this is a plain attribute: pyinfra loads its entry points anew for every name of an inventory.
    globals()["connector"] = face
    return face
