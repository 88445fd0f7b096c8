"""The score for the out-of-memory killer: low for the agent, a login's for what it starts."""

from __future__ import annotations

import pytest

from pyinfra_agent import _oom


@pytest.fixture
def score(tmp_path, monkeypatch):
    """A file in place of the kernel's."""
    file = tmp_path / "oom_score_adj"
    file.write_text("-900\n")
    monkeypatch.setattr(_oom, "_FILE", str(file))
    monkeypatch.setattr(_oom, "_own", None)
    yield file
    if _oom._own is not None:
        _oom.os.close(_oom._own[0])


def test_command_is_born_with_the_score_of_a_login(score):
    _oom.spare_commands()
    with _oom.with_score_of_a_login():
        assert score.read_text().startswith("0")
    assert score.read_text().startswith("-900")


def test_score_comes_back_after_a_failure(score):
    _oom.spare_commands()
    with pytest.raises(RuntimeError), _oom.with_score_of_a_login():
        raise RuntimeError
    assert score.read_text().startswith("-900")


@pytest.mark.parametrize("text", ["0\n", "300\n"])
def test_score_that_protects_nobody_is_left_to_commands(score, text):
    score.write_text(text)
    _oom.spare_commands()
    with _oom.with_score_of_a_login():
        assert score.read_text() == text


def test_score_that_cannot_be_had_back_is_given_up(score, monkeypatch, capsys):
    writes = []

    def write(descriptor, data, offset):
        writes.append(data)
        if data != b"0":
            raise PermissionError(13, "Permission denied")
        return len(data)

    monkeypatch.setattr(_oom.os, "pwrite", write)
    _oom.spare_commands()
    assert "without-oom-protection" in capsys.readouterr().err
    writes.clear()
    with _oom.with_score_of_a_login():
        assert writes == []


def test_system_without_scores_is_none_the_worse(score):
    score.unlink()
    _oom.spare_commands()
    with _oom.with_score_of_a_login():
        assert not score.exists()
