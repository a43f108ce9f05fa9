"""Files are whole, with real processes and full disks."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from goodinit.errors import OptionError, SaveError
from goodinit.files import check_writable, delete_unfinished, replacing, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "folder" / "a"
    write_whole(file, b"one")
    write_whole(file, b"two")
    assert file.read_bytes() == b"two"
    assert [p.name for p in file.parent.iterdir()] == ["a"]


def test_on_a_full_disk_the_old_file_stays(tmp_path):
    """A process whose files may not grow beyond a size: what a full disk does to a write, done by the kernel."""
    file = tmp_path / "a"
    write_whole(file, b"old")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path\nfrom goodinit.files import *\n"
        f"try: write_whole(Path({str(file)!r}), b'x' * 5000)\n"
        "except SaveError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot save a in " in done.stdout
    assert "File too large; 5,000 bytes" in done.stdout
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_are_as_readable_as_others(tmp_path):
    write_whole(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match=r"cannot save b in '.*file'"):
        write_whole(tmp_path / "file" / "b", b"x")


def test_a_check_leaves_the_folder_as_it_is(tmp_path):
    old = tmp_path / "old"
    old.write_bytes(b"a file")
    check_writable(old, what="a thing", example="x")
    check_writable(tmp_path / "new", what="a thing", example="x")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert old.read_bytes() == b"a file"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere/a",
            r"a thing cannot be saved as '.*nowhere.a': No such file or directory; name a file in a folder that you can",
        ),
        ("file/a", r"file.a': Not a directory"),
        ("folder", r"folder', which is a folder; name a file in it, '.*folder.x.y'"),
    ],
)
def test_a_path_that_nothing_can_be_saved_at(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=message):
        check_writable(tmp_path / name, what="a thing", example="x.y")


def test_devices_and_pipes_are_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for name in ("pipe", "null"):
        with pytest.raises(
            OptionError, match=rf"a thing cannot be saved as '.*{name}', which is a device or a pipe; name a file"
        ):
            check_writable(tmp_path / name, what="a thing", example="x.y")
        with pytest.raises(SaveError, match="it is a device or a pipe, in whose place no file may be put"):
            write_whole(tmp_path / name, b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_who_may_read_a_file_stays_as_it_was(tmp_path):
    (tmp_path / "a").touch(mode=0o600)
    write_whole(tmp_path / "a", b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_of_a_link_what_it_points_at_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "a")
    write_whole(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_bytes() == b"x"


def test_nothing_is_left_of_what_was_broken_off(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def interrupted():
        with replacing(tmp_path / "a", 3) as unfinished:
            unfinished.write_bytes(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_deleted(tmp_path):
    file = tmp_path / "a[1]"
    write_whole(file, b"old")
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom goodinit.files import replacing\n"
        f"with replacing(Path({str(file)!r}), 3) as unfinished: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (tmp_path / ".a[1].lock").touch()
    assert len(list(tmp_path.iterdir())) == 3
    delete_unfinished(file)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a[1].lock", "a[1]"]


@pytest.mark.parametrize(("name", "reason"), [("x" * 300, "File name too long"), ("a\0b", "embedded null byte")])
def test_names_that_no_file_can_have(tmp_path, name, reason):
    with pytest.raises(OptionError, match=f"a thing cannot be saved as .*: {reason}; name a file in a folder"):
        check_writable(tmp_path / name, what="a thing", example="x")
