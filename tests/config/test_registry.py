"""Registries: what other packages add is found, and what is wrong with one of them stays with it."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hrvqvae.config import presets
from hrvqvae.config.registry import DATASETS, PRIORS, SYSTEMS, Registry, register_system
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import told_once
from tests.conftest import done, refused

REGISTRIES = (SYSTEMS, PRIORS, DATASETS)
_SYSTEM = """
import dataclasses
from hrvqvae.config.registry import SYSTEMS
SYSTEM = dataclasses.replace(SYSTEMS.get("vqvae"), name={name!r})
"""


def install(folder: Path, package: str, source: str, **entries: str) -> None:
    """Put a package on the import path as an installer does: its module, and the systems that it announces."""
    (folder / f"{package}.py").write_text(source)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {package}:{attribute}" for name, attribute in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[hrvqvae.systems]", *lines]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages, from which registries that have looked before look again."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    for table in REGISTRIES:
        monkeypatch.delitem(table.__dict__, "_entries", raising=False)
    yield folder
    for table in REGISTRIES:
        table.__dict__.pop("_entries", None)
    presets.get.cache_clear()


def test_a_package_adds_a_system(site: Path) -> None:
    install(site, "theirs", _SYSTEM.format(name="other"), other="SYSTEM", vqvae2="SYSTEM")
    assert SYSTEMS.get([*SYSTEMS][-1]) is SYSTEMS.entries()[-1]
    assert SYSTEMS.get("vqvae2").title == "VQVAE-2", "no package replaces a built-in system"
    code, printed, told = done("presets")
    assert (code, "\nother/mnist " in printed, told) == (0, True, "")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import nothing_of_this_name", "can't be imported (ModuleNotFoundError: "),
        ("raise SystemError('two\\nlines')", "can't be imported (SystemError: two lines)"),
        ("SYSTEM = None", "must be a System of that name"),
        (_SYSTEM.format(name="another"), "must be a System of that name"),
    ],
)
def test_a_broken_package_is_named_and_breaks_nothing_else(source: str, fault: str, site: Path) -> None:
    install(site, "theirs", source, other="SYSTEM")
    told_once.cache_clear()
    code, printed, told = done("presets")
    assert told.startswith(f"hrvqvae: the system 'other' of the package theirs {fault}")
    assert (code, told.count("\n"), "other" in printed) == (0, 1, False)
    assert [entry.name for entry in SYSTEMS.entries()] == [*SYSTEMS][:-1]
    assert refused(["train", "other/mnist"]) == told


def test_a_system_is_registered(site: Path) -> None:
    entry = register_system(dataclasses.replace(SYSTEMS.get("vqvae"), name="other"))
    assert SYSTEMS.get("other") is entry
    assert presets.get("other/mnist").config.model.system == "other"
    with pytest.raises(InputError, match="there is a system 'other' already"):
        register_system(entry)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.group)
def test_unknown_names(registry: Registry[object]) -> None:  # type: ignore[type-var]
    for name in registry:
        with pytest.raises(InputError, match=f"unknown {registry.noun} '{name}x': did you mean .*{name}"):
            registry.get(f"{name}x")
    with pytest.raises(InputError, match=f"there are {', '.join(registry)}$"):
        registry.get("0")


def test_what_is_registered_has_its_name() -> None:
    for registry in REGISTRIES:
        assert [entry.name for entry in registry.entries()] == [*registry]
    assert all(system.config.system == system.name for system in SYSTEMS.entries())
    assert all(network.config().kind == network.name for network in PRIORS.entries())
