"""From pyinfra's command and arguments to what travels: an argv, the few variables it needs, and a text to show.

A target starts an argv; @ssh hands one string to a shell. Where that string is one plain command (sudo, its options,
`sh -c SCRIPT`), its words are sent as they are and the outer shell is saved. Where it needs a shell (su with a
password, `-s $(command -v bash)`, a `_shell_executable` with syntax in it), it goes to `sh -c` whole, as with @local.

Passwords never stand in an argv, which every user of the target can read. pyinfra prefixes the command with
`env PYINFRA_SUDO_PASSWORD=...`; here such assignments become variables of the request. Values of `_env` are part of the
script that pyinfra builds (sudo would drop them otherwise). A script with hidden values goes to the shell's standard
input, unless that has another use: then it stands in the shell's argv, as with @ssh.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pyinfra.api import StringCommand

from ._errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    #: From a command and connector arguments (`_sudo`, ...) to the command that pyinfra would hand to a shell: the
    #: `make_unix_command_for_host` of the installed pyinfra, for one host.
    Wrap = Callable[[StringCommand | str, Mapping[str, Any]], StringCommand]

__all__ = ["BadCommand", "Invocation", "build_invocation", "plain_words"]

_SU_PASSWORD: Final = "PYINFRA_SU_PASSWORD"
_ASKPASS_VARIABLES: Final = ("SUDO_ASKPASS", "PYINFRA_SUDO_PASSWORD", _SU_PASSWORD)
_DEFAULT_SHELL: Final = "sh"
#: What becomes part of the script.
_WITHIN_SCRIPT: Final = ("_env", "_chdir")
#: Those that know _READ_SCRIPT.
_READING_SHELLS: Final = ("sh", "ash", "bash", "dash", "ksh", "mksh", "zsh")
#: Everything is read before anything runs, so that no command takes the rest of the script for its input.
_READ_SCRIPT: Final = 'eval "$(cat)"'
#: What an account has for a shell that nobody is to use. `true` would report that all is done.
_NO_SHELLS: Final = ("false", "nologin", "true")
_ARGUMENT_MAX_BYTES: Final = 128 * 1024 - 1  # Linux's MAX_ARG_STRLEN, which counts the terminating NUL

# A command that a shell only splits and unquotes (POSIX.1-2017, XCU 2.2). No alternative can start where another does
# and none repeats inside, so a failed match costs linear time.
_PLAIN: Final = re.compile(
    r"""
    (?: [^|&;<>()$`*?\[\]~{}!^\\"'=#\n\r]        # anything without a meaning in any of the usual shells
      | (?<![ \t]) (?<!\A) [=#]                   # they act in front of a word only, but see _ASSIGNMENT
      | '[^']*'
      | "(?: [^"$`\\] | \\["\\] )*"               # before other characters the backslash would stay (XCU 2.2.3)
      | \\[^\n]                                  # before a newline it joins two lines
    )*
    """,
    re.VERBOSE | re.DOTALL,
)
# The parts of such a command. Not shlex.split, which goes character by character: 0.2 ms for a small script.
_PART: Final = re.compile(
    r"""
      (?P<blank> [ \t]+ )
    | (?P<bare> [^ \t'"\\]+ )
    | '(?P<single> [^']* )'
    | "(?P<double> (?: [^"\\] | \\. )* )"
    | \\(?P<escaped> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")


class BadCommand(AgentError):
    """A command that no agent is asked to run; the text does not name the host."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One command as it is asked of an agent.

    Attributes:
        argv: the program and its arguments; free of pyinfra's passwords.
        env: variables beside the target's own; holds the passwords, so it must not be shown or logged.
        masked: the command as pyinfra prints it, with hidden values masked.
        script: what must be its standard input, for the shell that is to run it; None is whatever the user wants.
        hides_something: the script has hidden values.
    """

    argv: list[str]
    env: dict[str, str]
    masked: str
    script: bytes | None = None
    hides_something: bool = False

    def __repr__(self) -> str:
        # Neither argv (hidden values of `_env`) nor env may reach a log through a traceback or a debugger's print.
        return f"Invocation({self.masked!r})"


def build_invocation(
    wrap: Wrap, command: StringCommand | str, arguments: Mapping[str, Any], *, stdin_is_free: bool = False
) -> Invocation:
    """Return what to run for *command* with pyinfra's connector *arguments*, without the control arguments.

    Call it inside the closure that `execute_command_with_sudo_retry` calls: a retry has a password that the first
    attempt had not. *wrap* may run commands on the host, to put pyinfra's askpass script there. *stdin_is_free* says
    that the command has neither input nor a terminal.

    Raises:
        PyinfraError: the askpass script could not be made.
        BadCommand: `_shell_executable` is one that runs nothing, or the command is to run as another user and is too
            long for that.
    """
    _check_shell(arguments.get("_shell_executable"))
    whole = wrap(command, arguments)
    masked = str(whole)
    if stdin_is_free and masked != whole.get_raw_value():
        hidden = _with_script(wrap, command, arguments, masked)
        if hidden is not None and hidden.hides_something:
            return hidden
    as_other = _as_other_user(whole, masked, arguments)
    if as_other is not None:
        longest = _longest_argument(as_other)
        if longest <= _ARGUMENT_MAX_BYTES:
            return as_other
        by_stdin = _with_script(wrap, command, arguments, masked) if stdin_is_free else None
        if by_stdin is not None:
            return by_stdin
        raise BadCommand(
            f"a command of {longest} bytes cannot run as another user with _stdin, _get_pty or _su_password, where"
            f" {_ARGUMENT_MAX_BYTES} are possible: upload the script with files.put and run that"
        )
    return _as_agents_user(wrap, command, arguments, whole, masked)


def _as_agents_user(
    wrap: Wrap, command: StringCommand | str, arguments: Mapping[str, Any], whole: StringCommand, masked: str
) -> Invocation:
    # The shell as pyinfra reads it: absent or no string means sh, None means that there is none.
    shell = arguments.get("_shell_executable", _DEFAULT_SHELL)
    if shell is not None:
        words = _words_of_shell(shell if isinstance(shell, str) else _DEFAULT_SHELL)
        if words:
            script = wrap(command, {**arguments, "_shell_executable": None})
            return Invocation([*words, "-c", script.get_raw_value()], {}, masked)
    return Invocation([_DEFAULT_SHELL, "-c", whole.get_raw_value()], {}, masked)


def _check_shell(shell: object) -> None:
    words = _words_of_shell(shell) if isinstance(shell, str) else None
    if words and os.path.basename(words[0]) in _NO_SHELLS:
        raise BadCommand(f"_shell_executable is {shell}, which runs no commands: name a shell, such as sh")


# A run has few shells and many commands.
@lru_cache(maxsize=64)
def _words_of_shell(shell: str) -> tuple[str, ...] | None:
    words = plain_words(shell)
    return tuple(words) if words is not None else None


def _as_other_user(whole: StringCommand, masked: str, arguments: Mapping[str, Any]) -> Invocation | None:
    if arguments.get("_su_user"):
        return _invocation_of_su(whole, masked)
    if any(arguments.get(key) for key in ("_sudo", "_doas", "_dzdo")):
        env, bits = _take_assignments(whole.bits)
        raw = _raw(bits)
        return Invocation(plain_words(raw) or [_DEFAULT_SHELL, "-c", raw], env, masked)
    return None


def _longest_argument(invocation: Invocation) -> int:
    return max(len(os.fsencode(word)) for word in invocation.argv)


def _with_script(
    wrap: Wrap, command: StringCommand | str, arguments: Mapping[str, Any], masked: str
) -> Invocation | None:
    """Return an invocation whose shell reads the command from standard input; None where that is not possible.

    There is no other way to another user: sudo and su close every further descriptor. Of a su with a password the
    standard input is the password.
    """
    shell = plain_words(str(arguments.get("_shell_executable", _DEFAULT_SHELL)))
    within = {name: arguments.get(name) for name in _WITHIN_SCRIPT}
    script = wrap(command, {**within, "_shell_executable": None})
    raw = script.get_raw_value()
    if shell is None or os.path.basename(shell[0]) not in _READING_SHELLS or "\0" in raw:
        return None
    without = {**arguments, **dict.fromkeys(_WITHIN_SCRIPT)}
    outer = wrap(StringCommand(_READ_SCRIPT), without)
    invocation = _as_other_user(outer, masked, without)
    if invocation is None:
        invocation = _as_agents_user(wrap, StringCommand(_READ_SCRIPT), without, outer, masked)
    if _SU_PASSWORD in invocation.env:
        return None
    return replace(invocation, script=os.fsencode(raw), hides_something=raw != str(script))


def plain_words(raw: str) -> list[str] | None:
    """Return the words of the shell command *raw*, or None if a shell would do more with it than split and unquote."""
    if not _PLAIN.fullmatch(raw):
        return None
    parts_of_words: list[list[str]] = []
    within_word = False
    for part in _PART.finditer(raw):
        kind = part.lastgroup or ""
        if kind == "blank":
            within_word = False
            continue
        if not within_word:
            parts_of_words.append([])
            within_word = True
        parts_of_words[-1].append(re.sub(r"\\(.)", r"\1", part[kind]) if kind == "double" else part[kind])
    words = ["".join(parts) for parts in parts_of_words]
    # In front of the program's name NAME=value is no word but an assignment.
    return words if words and not _ASSIGNMENT.match(words[0]) else None


def _invocation_of_su(whole: StringCommand, masked: str) -> Invocation:
    env, bits = _take_assignments(whole.bits)
    raw = _raw(bits)
    if _SU_PASSWORD in env:
        # [sudo, doas or dzdo and its options] ASKPASS | su USER ...
        # What stands before ASKPASS would only print the password with other rights, and take our variable away from
        # it; the script is readable by everybody, so it runs without. su does not get to see the password's variable,
        # because with -m it would hand it on to the command.
        bar = bits.index("|")
        raw = f"{_raw(bits[bar - 1 : bar])} | env -u {_SU_PASSWORD} {_raw(bits[bar + 1 :])}"
        env = {_SU_PASSWORD: env[_SU_PASSWORD]}
    return Invocation([_DEFAULT_SHELL, "-c", raw], env, masked)


def _take_assignments(bits: Sequence[object]) -> tuple[dict[str, str], list[object]]:
    """Return the askpass variables that `env` sets in *bits*, and *bits* without those calls of `env`."""
    env: dict[str, str] = {}
    rest: list[object] = []
    after_env = False
    for bit in bits:
        name, _, value = _raw([bit]).partition("=") if after_env else ("", "", "")
        if name in _ASKPASS_VARIABLES:
            if rest[-1:] == ["env"]:
                rest.pop()
            env[name] = "".join(shlex.split(value))
            continue
        rest.append(bit)
        after_env = bit == "env"
    return env, rest


def _raw(bits: Sequence[object]) -> str:
    return StringCommand(*bits).get_raw_value()
