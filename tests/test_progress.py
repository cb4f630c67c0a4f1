"""Long work shows itself: only where it is asked for, on standard error, as lines or as a bar."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from hrvqvae.cli import main
from hrvqvae.utils import progress
from hrvqvae.utils.progress import clock, shown, task, tracked
from tests.tokens.made import digit_files

LINE = r"tokenize  \d+ of 40 images  [\d.,]+ images/s  \d+:\d\d:\d\d left\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.0)


def test_a_library_shows_nothing(every_line: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(5), "count", 5, lambda _: 1)) == list(range(5))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_lines_have_the_count_the_rate_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with shown(), task("work", 1_000, "rows", done=100) as advance:
        for _ in range(9):
            now[0] += 10.0
            advance(100)
    assert capsys.readouterr().err.splitlines() == [
        f"work  {100 + 100 * place:,} of 1,000 rows  10 rows/s  0:0{left // 60}:{left % 60:02d} left"
        for place, left in ((2, 70), (4, 50), (6, 30), (8, 10))
    ]


def test_a_task_inside_of_a_task_is_silent(every_line: None, capsys: pytest.CaptureFixture[str]) -> None:
    with shown(), task("outer", 2) as advance:
        list(tracked(range(3), "inner", 3, lambda _: 1))
        advance(1)
    assert re.fullmatch(r"outer  1 of 2 .*\n", capsys.readouterr().err)


def test_a_bar_on_a_terminal(every_line: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with shown():
        assert len(list(tracked(range(4), "work", 4, lambda _: 1))) == 4
    assert "\x1b[" in terminal.getvalue()
    assert "4 of 4 images" in terminal.getvalue()


def test_a_terminal_without_the_extra(every_line: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    with shown():
        list(tracked(range(2), "work", 2, lambda _: 1))
    assert "2 of 2 images" in terminal.getvalue()


def test_commands_show_it_beside_their_json(
    every_line: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = digit_files(tmp_path / "digits", 40)
    arguments = ["tokenize", "mnist", str(folder), str(tmp_path / "out"), "--shard-size", "8", "--workers", "0"]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"images": 40, "broken": 0, "shards": 5, "made": 40}
    assert re.fullmatch(f"({LINE}){{5}}", captured.err), captured.err
    packed = tmp_path / "all.hrva"
    for words, title in (
        (["compress", "mnist", str(folder), "-o", str(packed)], "compress"),
        (["decompress", str(packed), "-o", str(tmp_path / "back")], "decompress"),
    ):
        assert main(words) == 0
        assert f"{title}  " in capsys.readouterr().err


def test_clock() -> None:
    assert [clock(seconds) for seconds in (-1, 0, 59.9, 3600, 360_061)] == [
        "0:00:00", "0:00:00", "0:00:59", "1:00:00", "100:01:01",
    ]  # fmt: skip
