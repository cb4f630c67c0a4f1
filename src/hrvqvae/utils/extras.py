"""Extras: optional groups of packages, such as hrvqvae[hub], read from the metadata of the
installed hrvqvae.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata

# such as: onnx>=1.18; extra == "onnx"
_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[.*?\])?[^;]*(?:;.*\bextra == ["']([\w.-]+)["'])?""")


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def packages() -> Mapping[str, list[str]]:
    """Return the packages by extra, "" for those always required; no entry if hrvqvae is not
    installed.
    """
    extras: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires("hrvqvae") or []
    except metadata.PackageNotFoundError:
        return extras
    for match in filter(None, map(_REQUIREMENT.match, requirements)):
        name = _normalize(match[1])
        if name != "hrvqvae":
            extras.setdefault(match[2] or "", []).append(name)
    return extras


def extra_of(module: str) -> str:
    """Return the extra that installs a module, such as "figures" for "matplotlib.figure"; "" if no
    extra does.
    """
    package = _normalize(module.partition(".")[0])
    return next((extra for extra, names in packages().items() if package in names), "")
