"""What a command in a terminal is told about it."""

from __future__ import annotations

import pytest

from pyinfra_agent._pty import PtySize, terminal_environment

SIZE = PtySize(rows=37, columns=121, term="screen")


def test_terminal_adds_its_name_and_no_size():
    """A size in the environment would be wrong after the first resize."""
    assert terminal_environment({b"HOME": b"/root"}, SIZE) == {b"HOME": b"/root", b"TERM": b"screen"}


@pytest.mark.parametrize("wrong", [{b"LINES": b"24"}, {b"COLUMNS": b"80"}, {b"LINES": b"", b"COLUMNS": b"x"}])
def test_size_that_is_not_the_terminals_is_dropped(wrong):
    assert terminal_environment(wrong, SIZE) == {b"TERM": b"screen"}


def test_true_size_is_kept_for_a_controller_that_asks_for_it():
    true = {b"LINES": b"37", b"COLUMNS": b"121"}
    assert terminal_environment(true, SIZE) == true | {b"TERM": b"screen"}
