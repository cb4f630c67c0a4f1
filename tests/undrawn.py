"""Trainings whose curves are not drawn: that takes most of the time of a small one, and few tests look at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hrvqvae.plots import curves
from hrvqvae.utils.files import write_atomic


@contextmanager
def undrawn() -> Iterator[None]:
    """Files of a few bytes, written as any, in the place of curves and codeword usage of a training."""

    def write(_: object, path: Path) -> None:
        write_atomic(path, b"not drawn")

    with pytest.MonkeyPatch.context() as patched:
        for name in ("training_curves", "prior_curves", "codeword_usage"):
            patched.setattr(curves, name, write)
        yield
