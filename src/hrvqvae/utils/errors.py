"""Errors that a user can cause: each is one clear line, and the command line turns it into exit code 2."""

from __future__ import annotations


class InputError(ValueError):
    """What was asked for can't be done; the message says what is wrong and what to do, in one line."""


class NonFiniteError(InputError):
    """A loss, a gradient or a latent is NaN or infinite; raised before anything is updated."""


class DamagedFileError(InputError):
    """A file on disk is not what was written: cut short, changed, or of another kind."""
