"""Progress on standard error, as lines or as a bar; formats of numbers."""

import io
import math
import re
import sys
import threading

import pytest

from hrvqvae.cli import main
from hrvqvae.utils import progress
from hrvqvae.utils.progress import task, tracked, waiting
from hrvqvae.utils.quantities import clock, counted, psnr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.0)


@pytest.fixture
def shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hrvqvae")


def test_a_library_shows_nothing(
    every_line: None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    waiting("reading")
    assert list(tracked(range(5), "count", 5, lambda _: 1)) == list(range(5))
    assert (tuple(capsys.readouterr()), caplog.messages) == (("", ""), [])


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_line_for_who_waits(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("hrvqvae.cli.run", lambda argv: waiting("reading") or 0)
    assert main([]) == 0
    assert stream.getvalue() == ("hrvqvae: reading ...\n" if stream.isatty() else "")


def test_work_of_one_long_part_says_so_where_there_is_no_terminal(
    shown: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SAY_AFTER_SECONDS", 0.0)
    said = threading.Event()
    monkeypatch.setattr(progress.Meter, "say", lambda _, text: (print(text, file=sys.stderr), said.set()))
    with task("sample", 64):
        assert said.wait(30)
    assert capsys.readouterr().err == "sample ...\n"


def test_lines_have_the_count_the_rate_and_the_time_left(
    shown: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with task("work", 1_000, "rows", done=100) as advance:
        for _ in range(9):
            now[0] += 10.0
            advance(100)
    assert capsys.readouterr().err.splitlines() == [
        f"work  {100 + 100 * place:,} of 1,000 rows  10 rows/s  0:0{left // 60}:{left % 60:02d} left"
        for place, left in ((2, 70), (4, 50), (6, 30), (8, 10))
    ]


def test_a_task_inside_of_a_task_is_silent(every_line: None, shown: None, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with task("outer", 2) as advance:
            list(tracked(range(3), "inner", 3, lambda _: 1))
            advance(1)
        assert re.fullmatch(r"outer  1 of 2 .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("rich", [True, False], ids=["bar", "without the extra"])
def test_on_a_terminal(rich: bool, every_line: None, shown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    if not rich:
        for name in ("rich", "rich.console", "rich.progress"):
            monkeypatch.setitem(sys.modules, name, None)
    assert len(list(tracked(range(4), "work", 4, lambda _: 1))) == 4
    assert ("\x1b[" in terminal.getvalue()) == rich
    assert "4 of 4 images" in terminal.getvalue()


def test_commands_show_it(
    every_line: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hrvqvae.cli.run", lambda argv: len(list(tracked(range(5), "work", 5, lambda _: 1))) - 5)
    assert main([]) == 0
    line = r"work  \d+ of 5 images  [\d.,]+ images/s  \d+:\d\d:\d\d left\n"
    printed = capsys.readouterr()
    assert re.fullmatch(f"({line}){{5}}", printed.err), printed.err
    assert printed.out == ""


def test_numbers_for_people() -> None:
    said = [counted(count, "image") for count in (0, 1, 2, 2000)]
    assert said == ["0 images", "1 image", "2 images", "2,000 images"]
    assert [clock(seconds) for seconds in (-1, 0, 59.9, 3600, 360_061)] == [
        "0:00:00", "0:00:00", "0:00:59", "1:00:00", "100:01:01",
    ]  # fmt: skip
    assert psnr(0.01) == pytest.approx(20)
    assert math.isinf(psnr(0.0))
