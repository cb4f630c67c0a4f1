"""From what a person names to files: one file, a pattern of files, or all of one form in a folder."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

_WILDCARD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_FILES = 1_000_000


def _choices(inner: str) -> list[str]:
    """What stands for braces: "08..10" -> 08, 09, 10; "train,test" -> train, test."""
    matched = _RANGE.fullmatch(inner)
    if matched is None:
        return inner.split(",")
    first, last = int(matched[1]), int(matched[2])
    if not first <= last < first + _MOST_FILES:
        raise InputError(f"{{{inner}}} is no range of at most {_MOST_FILES:,} files that goes upwards")
    width = len(matched[1]) if matched[1].startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def _without_braces(pattern: str) -> Iterator[str]:
    """Every name that a pattern with braces stands for, in order."""
    plain, inner = _BRACES.split(pattern)[::2], _BRACES.findall(pattern)
    for chosen in itertools.product(*map(_choices, inner)):
        yield "".join(itertools.chain.from_iterable(itertools.zip_longest(plain, chosen, fillvalue="")))


def _matching(pattern: Path) -> list[Path]:
    found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def named_files(pattern: Path) -> list[Path]:
    """Files that a name stands for: itself, or with {00..99}, {a,b}, *, ? and [abc] those that it matches, in order.

    Raises:
        InputError: a file that it names without a wildcard is missing, or nothing matches.
    """
    if pattern.is_file():
        return [pattern]
    names = list(_without_braces(str(pattern)))
    files = list[Path]()
    for name in names:
        if _WILDCARD.search(name):
            files += _matching(Path(name))
        elif Path(name).is_file():
            files.append(Path(name))
        elif len(names) == 1:
            raise InputError(f"there is no file {name}")
        else:
            raise InputError(
                f"{name} is missing, one of the {counted(len(names), 'file')} that {pattern} names; "
                "get it, or name those that are there"
            )
    if not files:
        raise InputError(f"no file is named like {pattern}")
    return list(dict.fromkeys(files))


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files with such suffixes at any depth of a folder, sorted; hidden ones are left out. Links are followed once."""
    found, seen = list[Path](), set[Path]()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = Path(where).resolve()
        folders[:] = [name for name in folders if not name.startswith(".") and real not in seen]
        if real in seen:
            continue
        seen.add(real)
        found += [Path(where, name) for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
    return sorted(found)
