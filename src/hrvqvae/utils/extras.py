"""Extras: optional groups of packages of hrvqvae, such as "hub", read from its metadata."""

import re
from functools import cache
from importlib import metadata

# such as: onnx>=1.18; extra == "onnx"
_REQUIREMENT = re.compile(r"""([\w.-]+).*\bextra == ["']([\w.-]+)["']""")


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _extras() -> dict[str, str]:
    """Return the extra of each optional package."""
    extras: dict[str, str] = {}
    for match in map(_REQUIREMENT.match, metadata.requires("hrvqvae") or []):
        if match:
            extras.setdefault(_normalize(match[1]), match[2])
    return extras


def extra_of(module: str) -> str:
    """Return the extra that installs a module, such as "figures" for "matplotlib.figure"; "" if no
    extra does.
    """
    return _extras().get(_normalize(module.partition(".")[0]), "")
