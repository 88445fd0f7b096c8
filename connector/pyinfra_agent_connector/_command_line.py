"""What the controller's subcommands of `pyinfra-agent` share: one line for a mistake, and one for a failure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pyinfra_agent_protocol import KeyFormatError, LocalProtocolError

from ._errors import AgentError
from ._identity import IdentityError
from ._known import UntrustedAgent
from ._names import BadAgentName
from ._passphrase import PassphraseError
from ._private_file import PrivateFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CommandFailed", "Parser", "add_home", "line_of", "reporting", "say"]


class CommandFailed(Exception):
    """A command cannot do what it should; the text says why, in one line."""


class Parser(argparse.ArgumentParser):
    """One line for a mistake, as the agent's own subcommands give."""

    def error(self, message: str) -> NoReturn:
        """Print *message* and end with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def reporting(run: Callable[[], None]) -> int:
    """Return the exit status of *run*: 0, or 1 after one line on standard error."""
    try:
        run()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise  # nobody reads on: the main program knows what that means
        what = f" {error.filename}" if error.filename else ""
        print(f"pyinfra-agent:{what} {error.strerror or error}", file=sys.stderr)
    except _EXPECTED as error:
        print(f"pyinfra-agent: {error}", file=sys.stderr)
    else:
        return 0
    return 1


_EXPECTED = (
    AgentError,
    BadAgentName,
    CommandFailed,
    IdentityError,
    KeyFormatError,
    LocalProtocolError,
    PassphraseError,
    PrivateFileError,
    UntrustedAgent,
)


def add_home(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the option --home."""
    parser.add_argument(
        "--home", metavar="DIR", help="directory of this controller's key and known_agents (default: as agent_home)"
    )


def line_of(words: Sequence[str]) -> str:
    """Return the line that *words* are, or stand for: the name of a file, or - for standard input.

    Unquoted a key line is several words: what was meant is plain.
    """
    if list(words) == ["-"]:
        return sys.stdin.read().strip()
    if len(words) == 1 and " " not in words[0]:
        return Path(words[0]).read_text(encoding="utf-8").strip()
    return " ".join(words)


def say(text: str) -> None:
    """Tell a person something on standard error: standard output holds what is to be pasted or saved."""
    print(text, file=sys.stderr)
