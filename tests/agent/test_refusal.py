from __future__ import annotations

import errno

import pytest

from pyinfra_agent._refusal import refused, show_path


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/etc/motd", "/etc/motd"),
        ("/tmp/gr\u00fc\u00df".encode(), "/tmp/gr\u00fc\u00df"),
        (b"a\nb\x1b[31m\xff", r"a\nb\x1b[31m\xff"),
        ("\u202eevil".encode(), r"\u202eevil"),
    ],
)
def test_show_path_is_one_printable_line(path: bytes, shown: str) -> None:
    """No path can break the line, colour the terminal or turn the text around."""
    assert show_path(path) == shown


def test_show_path_is_bounded() -> None:
    """A very long path keeps its two ends."""
    shown = show_path(b"/start/" + b"x" * 4000 + b"/end")
    assert len(shown) < 600
    assert shown.startswith("/start/")
    assert shown.endswith("/end")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, "not-found"),
        (errno.EISDIR, "is-directory"),
        (errno.EACCES, "permission"),
        (errno.ENOSPC, "no-space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.ENAMETOOLONG, "name-too-long"),
        (errno.ELOOP, "too-many-links"),
        (errno.EIO, "io"),
    ],
)
def test_refused_gives_code_and_path(number: int, code: str) -> None:
    """Each errno has its code, and one line that names the path."""
    error = refused(OSError(number, "x"), "write", b"/some/path")
    assert error.code == code
    assert error.text.startswith("cannot write /some/path: ")
    assert "\n" not in error.text
