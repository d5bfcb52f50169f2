"""What is written is there as a whole or not at all; what the dead left is swept, what the living write is not."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from ground import files
from tests.test_checkpoints import files_of


class Killed(Exception):
    pass


@pytest.mark.parametrize("folder", [False, True])
def test_what_fails_leaves_the_old_and_nothing_else(tmp_path, folder):
    path = tmp_path / "x"

    def write(text: str, stop: bool = False) -> None:
        with files.replacing(path, folder=folder) as partial:
            (partial / "inner" if folder else partial).write_text(text)
            if stop:
                raise Killed

    write("old")
    with pytest.raises(Killed):
        write("new", stop=True)
    assert [file.read_text() for file in files_of(tmp_path)] == ["old"]
    write("new")
    assert [file.read_text() for file in files_of(tmp_path)] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    path, replace = tmp_path / "x", Path.replace
    path.mkdir()
    (path / "old").touch()

    def refuse(self, target):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="read-only"), files.replacing(path, folder=True) as partial:
        (partial / "new").touch()
    monkeypatch.setattr(Path, "replace", replace)
    assert [file.name for file in files_of(tmp_path)] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("number", [*files._REMEDIES, errno.EIO])
def test_a_remedy_names_no_option_that_a_command_lacks(tmp_path, number):
    with pytest.raises(files.RunError) as caught, files.reporting(tmp_path, "write"):
        raise OSError(number, os.strerror(number))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: cannot write it ({os.strerror(number)}); ")
    assert "--" not in said.replace("(train.py: another --run-dir)", "")


def test_what_is_being_written_is_not_swept(tmp_path):
    with files.replacing(tmp_path / "x", folder=True) as partial:
        files.sweep(tmp_path)
        assert partial.is_dir()
    (tmp_path / ".y.0123.partial").mkdir()
    (tmp_path / ".z.partial-0123").write_text("as older versions named it")
    files.sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_once_and_used(tmp_path, monkeypatch, capsys, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with files.lock(tmp_path):
            files.write(tmp_path / "x", b"written")
    (leftover := tmp_path / ".y.0123.partial").touch()
    files.sweep(tmp_path)
    assert leftover.exists()  # it may be somebody's
    assert (tmp_path / "x").read_bytes() == b"written"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert os.strerror(number) in said[0]
    assert str(tmp_path) in said[0]


def test_a_lock_that_is_held_is_still_refused(tmp_path):
    with files.lock(tmp_path), pytest.raises(files.RunError, match="another process"), files.lock(tmp_path):
        pass
