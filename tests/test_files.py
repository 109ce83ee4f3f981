"""Files appear whole or not at all, under names of their own, and are read up to a limit."""

from __future__ import annotations

import builtins
import errno
import json
import os
import subprocess
import sys

import pytest

from ppl_vae import _files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "content", ["text", b"bytes", lambda file: file.write(b"written")], ids=["text", "bytes", "call"]
)
def test_a_file_is_written_and_nothing_else(content, tmp_path):
    path = _files.write(tmp_path / "a.txt", content)
    assert path.read_bytes() in (b"text", b"bytes", b"written")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failure_leaves_the_earlier_file_and_names_it(call, number, tmp_path, monkeypatch):
    path = _files.write(tmp_path / "a.txt", "before")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=os.strerror(number)) as found:
        _files.write(path, "after")
    assert found.value.errno == number
    assert call != "fsync" or found.value.filename == str(path)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_what_reads_back_as_something_else_does_not_take_the_name(tmp_path, monkeypatch):
    path = _files.write(tmp_path / "a.txt", "before")
    monkeypatch.setattr(type(path), "read_bytes", lambda self: b"something else")
    with pytest.raises(OSError, match="does not read back as it was written"):
        _files.write(path, "after")
    assert path.read_text() == "before"


def test_files_that_may_not_replace_take_the_next_name(tmp_path):
    paths = [_files.write_new(tmp_path / "a.txt", str(i)) for i in range(3)]
    assert [path.name for path in paths] == ["a.txt", "a-2.txt", "a-3.txt"]
    assert [path.read_text() for path in paths] == ["0", "1", "2"]
    with pytest.raises(FileExistsError):
        _files.write(tmp_path / "a.txt", "4", replace=False)


def test_without_links_names_are_still_taken_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    assert [_files.write_new(tmp_path / "a.txt", "x").name for _ in range(2)] == ["a.txt", "a-2.txt"]


def test_where_folders_cannot_be_flushed_files_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError("a folder")))
    assert _files.write(tmp_path / "a.txt", "x").read_text() == "x"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f".checkpoint.pt.{gone.pid}.tmp", f".a.json.{os.getpid()}.tmp", ".b.12.tmp2", "c.tmp"):
        (tmp_path / name).touch()
    _files.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([f".a.json.{os.getpid()}.tmp", ".b.12.tmp2", "c.tmp"])
    _files.remove_leftovers(tmp_path / "none")  # no error


def test_a_folder_has_one_writer(tmp_path):
    lock = _files.Lock(tmp_path)
    with pytest.raises(FileExistsError, match="another process writes to"):
        _files.Lock(tmp_path)
    lock.release()
    assert names(tmp_path) == []
    _files.Lock(tmp_path).release()


def test_without_locks_a_folder_is_written_to_all_the_same(tmp_path, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: real("no_" * (name == "fcntl") + name, *rest))
    _files.Lock(tmp_path)
    _files.Lock(tmp_path).release()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not a text file: byte 0"),
        (b"{", "is not valid JSON"),
        (b"[1]", "holds a list; expected an object"),
        (b"[" * 100_000, "cannot be read|is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
    ],
    ids=["bytes", "open", "list", "deep", "long"],
)
def test_json_that_is_none_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as found:
        _files.read_json(path)
    assert str(path) in str(found.value)


def test_a_file_without_an_end_is_read_up_to_the_limit(tmp_path):
    with pytest.raises(ValueError, match="/dev/zero is larger than 100 bytes"):
        _files.read_text(type(tmp_path)("/dev/zero"), limit=100)


def test_json_has_null_for_what_it_lacks():
    assert json.loads(_files.to_json({"a": float("nan"), "b": float("inf"), "c": 1.5})) == {
        "a": None,
        "b": None,
        "c": 1.5,
    }


def test_content_is_made_once_whatever_name_it_gets(tmp_path):
    """Content may be a stream, which comes once."""
    path = tmp_path / "a.txt"
    for number in range(1, 4):
        stream = iter([b"first ", b"second"])
        written = _files.write_new(path, lambda file, stream=stream: file.writelines(stream))
        assert written.name == ("a.txt" if number == 1 else f"a-{number}.txt")
        assert written.read_bytes() == b"first second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-2.txt", "a-3.txt", "a.txt"]
