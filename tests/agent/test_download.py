from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._download import Download
from pyinfra_agent._refusal import FileRefused

if TYPE_CHECKING:
    from pathlib import Path


def read_all(download: Download, max_bytes: int = 65536) -> bytes:
    parts = []
    while chunk := download.read(max_bytes):
        parts.append(chunk)
    return b"".join(parts)


def refusal(path: bytes) -> FileRefused:
    with pytest.raises(FileRefused) as caught:
        Download.open(path)
    return caught.value


def test_download_reads_file_in_chunks_and_digests_it(tmp_path: Path) -> None:
    """Content, size, mode and digest are the file's, and the end is empty."""
    content = os.urandom(200_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    path.chmod(0o640)
    running = hashlib.sha256()
    download = Download.open(os.fsencode(path), digest=running)
    assert (download.size, download.mode) == (200_000, 0o640)
    assert read_all(download, 65536) == content
    assert download.read(10) == b""
    assert running.digest() == hashlib.sha256(content).digest()
    download.close()
    download.close()


def test_download_follows_links(tmp_path: Path) -> None:
    """A link is read as the file that it leads to."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    download = Download.open(os.fsencode(tmp_path / "link"))
    assert read_all(download) == b"content"
    download.close()


def test_download_reads_proc_file_of_size_zero() -> None:
    """A file that claims to be empty is read to its end."""
    download = Download.open(b"/proc/self/status")
    assert download.size == 0
    assert b"\nPid:" in read_all(download)
    download.close()


def test_download_of_growing_file_includes_what_was_added(tmp_path: Path) -> None:
    """The end is where nothing more is found, not where the size said."""
    path = tmp_path / "log"
    path.write_bytes(b"one")
    download = Download.open(os.fsencode(path))
    assert download.read(100) == b"one"
    with path.open("ab") as log:
        log.write(b"two")
    assert read_all(download) == b"two"
    download.close()


def test_download_of_shrinking_file_ends_where_it_ends_now(tmp_path: Path) -> None:
    """What was read stays read, and the size is that of what was sent."""
    path = tmp_path / "log"
    path.write_bytes(b"first part, second part")
    digest = hashlib.sha256()
    download = Download.open(os.fsencode(path), digest=digest)
    try:
        assert download.read(10) == b"first part"
        os.truncate(path, 15)
        assert download.read_block(100) == b", sec"
        os.truncate(path, 0)
        assert download.read_block(100) == b""
    finally:
        download.close()
    assert digest.digest() == hashlib.sha256(b"first part, sec").digest()


def test_download_reads_names_of_any_bytes(tmp_path: Path) -> None:
    """Newlines, quotes, dashes and invalid UTF-8 are names like any other."""
    for name in (b"a\nb", b"'\"", b"-rf", b"\xff\xfe", b"n" * 255):
        path = os.fsencode(tmp_path) + b"/" + name
        with open(path, "wb") as file:
            file.write(name)
        download = Download.open(path)
        assert read_all(download) == name
        download.close()


def test_download_of_fifo_is_refused_without_hanging(tmp_path: Path) -> None:
    """A FIFO that nobody writes is refused at once; a hang would run into the child's deadline."""
    os.mkfifo(tmp_path / "fifo")
    program = (
        "import os, sys\n"
        "from pyinfra_agent._download import Download\n"
        "try:\n    Download.open(os.fsencode(sys.argv[1]))\n"
        "except Exception as error:\n    print(error.code, error.text)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "fifo")], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.startswith("not-regular cannot read")
    assert "it is a fifo" in done.stdout


def test_download_refuses_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories, sockets and devices each say what they are."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    assert refusal(os.fsencode(tmp_path)).code == "is-directory"
    assert "it is a socket" in refusal(b"socket").text
    assert "it is a char" in refusal(b"/dev/zero").text
    assert refusal(b"/dev/zero").code == "not-regular"


def test_download_of_missing_or_impossible_path_is_refused(tmp_path: Path) -> None:
    """Missing files, loops, long names and NUL bytes have their own codes."""
    base = os.fsencode(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(base + b"/missing").code == "not-found"
    assert refusal(base + b"/nul\0").code == "not-found"
    assert refusal(base + b"/loop").code == "too-many-links"
    assert refusal(base + b"/" + b"n" * 300).code == "name-too-long"


def test_download_read_error_is_refused_with_its_path() -> None:
    """A file whose first page cannot be read says so, with its path."""
    download = Download.open(b"/proc/self/mem")
    with pytest.raises(FileRefused) as caught:
        download.read(10)
    download.close()
    assert caught.value.code == "io"
    assert "/proc/self/mem" in caught.value.text


def test_download_refusal_closes_its_file(tmp_path: Path) -> None:
    """Refusals leave no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        refusal(os.fsencode(tmp_path))
        refusal(b"/dev/zero")
    assert len(os.listdir("/proc/self/fd")) == before
