"""The local side of transfers."""

from __future__ import annotations

import io
import os
import stat
import tempfile
import threading

import pytest

from pyinfra_agent_connector._files import local_chunks, local_sink

CONTENT = "é€\U0001f600 line\n" * 1000


def sent(source) -> bytes:
    return b"".join(local_chunks(source))


def test_local_chunks_of_a_name(tmp_path):
    path = tmp_path / "é \udcff"
    path.write_bytes(b"x" * 2_000_000)
    assert sent(str(path)) == b"x" * 2_000_000
    assert sent(path) == b"x" * 2_000_000
    assert max(map(len, local_chunks(path))) < 1_000_000, "in pieces, whatever the size"


@pytest.mark.parametrize("make", [io.BytesIO, lambda data: io.StringIO(data.decode())], ids=["bytes", "text"])
def test_local_chunks_of_an_object_begin_at_its_start(make):
    source = make(CONTENT.encode())
    source.read(3)
    assert sent(source) == CONTENT.encode()
    assert sent(source) == CONTENT.encode()


def test_local_chunks_of_text_files_are_utf8(tmp_path):
    """Whatever encoding the local file has, the text goes as UTF-8; escaped bytes go as they were."""
    path = tmp_path / "latin"
    path.write_bytes("é\n".encode("latin-1"))
    with open(path, encoding="latin-1") as file:
        assert sent(file) == "é\n".encode()
    assert sent(io.StringIO("\udcff")) == b"\xff"


def test_local_chunks_of_a_pipe():
    """An object that cannot seek is read from where it is."""
    read, write = os.pipe()
    os.write(write, b"through")
    os.close(write)
    with open(read, "rb") as file:
        assert sent(file) == b"through"


def test_local_chunks_that_cannot_be_read_are_os_errors(tmp_path):
    """Nothing else that a connector raises is handled by pyinfra."""
    closed = io.BytesIO(b"x")
    closed.close()
    for source in (closed, 7, io.StringIO("\ud800"), tmp_path / "missing", tmp_path):
        with pytest.raises(OSError, match=r".+"):
            sent(source)


def test_local_sink_makes_a_file_when_all_is_there(tmp_path):
    path = tmp_path / "new"
    with local_sink(str(path)) as write:
        write(b"one")
        assert not path.exists()
        write(b"two")
    assert path.read_bytes() == b"onetwo"
    assert os.listdir(tmp_path) == ["new"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_local_sink_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with local_sink(path) as write:
            write(b"new")
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_local_sink_keeps_mode_and_symlinks(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to("file")
    with local_sink(link) as write:
        write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "\U0001f600" * 63], ids=["ascii", "two bytes", "four bytes"])
def test_local_sink_takes_the_longest_names(tmp_path, name):
    """The temporary file's name is never longer than a name may be."""
    with local_sink(tmp_path / name) as write:
        write(b"x")
    assert os.listdir(tmp_path) == [name]


def test_local_sink_writes_to_what_is_no_file(tmp_path):
    """A FIFO gets the bytes; it is not replaced."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    with local_sink(fifo) as write:
        write(b"x" * 300_000)
    reader.join()
    assert got == [b"x" * 300_000]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    with local_sink("/dev/null") as write:
        write(b"x")


def test_local_sink_of_a_directory_is_a_clear_error(tmp_path):
    with pytest.raises(IsADirectoryError, match="name a file in it"), local_sink(tmp_path):
        pass


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_local_sink_decodes_for_text_objects(tmp_path, cut):
    """Characters are whole wherever the chunks are cut, for every kind of text object."""
    data = CONTENT.encode()
    with open(tmp_path / "file", "w+", encoding="utf-8") as file, tempfile.NamedTemporaryFile("w+") as wrapped:
        for sink in (io.StringIO(), file, wrapped):
            with local_sink(sink) as write:
                for start in range(0, len(data), cut):
                    write(data[start : start + cut])
            sink.seek(0)
            assert sink.read() == CONTENT


def test_local_sink_of_binary_objects(tmp_path):
    with open(tmp_path / "raw", "w+b", buffering=0) as raw, tempfile.NamedTemporaryFile() as wrapped:
        for sink in (io.BytesIO(), raw, wrapped):
            with local_sink(sink) as write:
                write(b"\xff\x00")
                write(b"b" * 100_000)
            sink.seek(0)
            assert sink.read() == b"\xff\x00" + b"b" * 100_000


def test_local_sink_finishes_short_writes():
    """An unbuffered object may take less than it is given."""

    class Slow(io.RawIOBase):
        got = b""

        def writable(self):
            return True

        def write(self, data):
            self.got += bytes(data[:2])
            return len(data[:2])

    slow = Slow()
    with local_sink(slow) as write:
        write(b"abcde")
    assert slow.got == b"abcde"


def test_local_sink_keeps_bytes_that_are_no_text():
    sink = io.StringIO()
    with local_sink(sink) as write:
        write(b"a\xff")
        write(b"\xc3")
    assert sink.getvalue().encode("utf-8", "surrogateescape") == b"a\xff\xc3"


def test_local_sink_that_cannot_be_written_is_an_os_error(tmp_path):
    closed = io.BytesIO()
    closed.close()
    with open(tmp_path / "ascii", "w", encoding="ascii") as ascii_only:
        for sink in (closed, 7, ascii_only, tmp_path / "missing" / "file"):
            with pytest.raises(OSError, match=r".+"), local_sink(sink) as write:
                write("é".encode())
