"""Files of rows, with real processes, kills and full disks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("filelock")

from goodinit.errors import SaveError
from goodinit.paper.files import BusyError, append_line, locked, read_lines


def python(code, **options):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


# A process whose files may not grow beyond a size: what a full disk does to a write, done by the kernel.
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\nfrom pathlib import Path\n"


def test_on_a_full_disk_the_rows_stay(tmp_path):
    file = tmp_path / "rows.jsonl"
    append_line(file, {"row": 1})
    before = file.read_bytes()
    code = FULL.format(size=60) + (
        "from goodinit.paper.files import *\n"
        f"try: append_line(Path({str(file)!r}), {{'row': 'x' * 500}})\n"
        "except SaveError as error: print(error)\n"
    )
    assert "File too large; the rows in it are as they were" in finished(python(code))
    assert file.read_bytes() == before
    append_line(file, {"row": 2})
    assert read_lines(file) == [{"row": 1}, {"row": 2}]


def test_a_line_that_was_cut_off_is_replaced(tmp_path):
    file = tmp_path / "rows.jsonl"
    append_line(file, {"row": 1})
    with file.open("ab") as f:
        f.write(b'{"row": 2, "unfin')
    assert read_lines(file) == [{"row": 1}]
    append_line(file, {"row": 3})
    assert file.read_text() == '{"row": 1}\n{"row": 3}\n'


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "a").write_text('{"row": 1}\nnonsense\n')
    with pytest.raises(SaveError, match=r"line 2 of '.*a' is no JSON object: b'nonsense'; mend it or take it out"):
        read_lines(tmp_path / "a")
    assert read_lines(tmp_path / "none") == []


def test_not_a_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        append_line(tmp_path / "a", {"loss": float("nan")})


def test_many_processes_append_at_once(tmp_path):
    code = (
        "from pathlib import Path\nfrom goodinit.paper.files import append_line\n"
        f"for i in range(40): append_line(Path({str(tmp_path / 'rows')!r}), {{'who': WHO, 'i': i, 'long': 'x' * 3000}})\n"
    )
    processes = [python(code.replace("WHO", str(who))) for who in range(3)]
    for process in processes:
        finished(process)
    rows = read_lines(tmp_path / "rows")
    assert sorted((row["who"], row["i"]) for row in rows) == [(who, i) for who in range(3) for i in range(40)]


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    file = tmp_path / "run.pt"
    code = (
        "import time\nfrom pathlib import Path\nfrom goodinit.paper.files import locked\n"
        f"with locked(Path({str(file)!r}), wait=False):\n    print('held', flush=True)\n    time.sleep(100)\n"
    )
    process = python(code)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=r"another process is at work on run.pt"), locked(file, wait=False):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    start = time.monotonic()
    with locked(file, wait=True):
        pass
    assert time.monotonic() - start < 5


def test_rows_are_lines(tmp_path):
    append_line(tmp_path / "rows", {"text": "a\nb"})
    assert json.loads((tmp_path / "rows").read_text()) == {"text": "a\nb"}


def test_a_last_line_whose_newline_an_editor_took_is_kept(tmp_path):
    file = tmp_path / "rows"
    append_line(file, {"row": 1})
    append_line(file, {"row": 2})
    file.write_bytes(file.read_bytes()[:-1])
    assert read_lines(file) == [{"row": 1}, {"row": 2}]
    append_line(file, {"row": 3})
    assert read_lines(file) == [{"row": 1}, {"row": 2}, {"row": 3}]


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match=r"cannot make the folder '.*file'"):
        append_line(tmp_path / "file" / "rows", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaveError, match=r"cannot append to '.*folder'"):
        append_line(tmp_path / "folder", {})
    with pytest.raises(SaveError, match=r"cannot read '.*folder'"):
        read_lines(tmp_path / "folder")
    (tmp_path / "rows").write_text("5\n")
    with pytest.raises(SaveError, match=r"line 1 of '.*rows' is no JSON object"):
        read_lines(tmp_path / "rows")
