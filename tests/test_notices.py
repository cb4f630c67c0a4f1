"""Lines for a person who waits are for terminals alone."""

from __future__ import annotations

import io
import sys

import pytest

from hrvqvae.utils.notices import waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "said"), [(Terminal(), "reading ...\n"), (io.StringIO(), "")])
def test_a_line_for_who_waits(stream: io.StringIO, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    waiting("reading")
    assert stream.getvalue() == said
