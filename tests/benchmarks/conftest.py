"""The tiny presets of a comparison, for the studies."""

from tests.comparison.conftest import systems

__all__ = ["systems"]
