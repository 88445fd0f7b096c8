"""How tests start an agent that is limited, or configured: prefixes for `Lab.agent`."""

from __future__ import annotations


def with_limit(soft, hard):
    """Return what starts an agent with a limit of open descriptors."""
    return ["prlimit", f"--nofile={soft}:{hard}"]


def with_config(lab, text, before=":"):
    """Return what starts an agent with the configuration *text*, after the shell command *before*."""
    path = lab.directory / "agent.toml"
    path.write_text(text)
    return ["sh", "-c", f'{before}; exec "$@" --config {path}', "sh"]
