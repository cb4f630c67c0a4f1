"""Registries: what other packages add is found, and what is wrong with one of them stays with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hrvqvae.cli import main
from hrvqvae.config import presets
from hrvqvae.config.registry import DATASETS, PRIORS, SYSTEMS, Registry
from hrvqvae.utils.errors import InputError

_SYSTEM = """
import dataclasses
from hrvqvae.config.registry import SYSTEMS
SYSTEM = dataclasses.replace(SYSTEMS.get("vqvae"), name={name!r})
"""


def install(folder: Path, package: str, source: str, group: str, **entries: str) -> None:
    """Put a package on the import path as an installer does: its module, and what it announces."""
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text(source)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {package}:{attribute}" for name, attribute in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, from which registries that have looked before look again."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for registry in (SYSTEMS, PRIORS, DATASETS):
        monkeypatch.delitem(registry.__dict__, "_announced", raising=False)
        monkeypatch.setattr(registry, "_loaded", {})
    yield folder  # type: ignore[misc]
    for registry in (SYSTEMS, PRIORS, DATASETS):
        registry.__dict__.pop("_announced", None)
    presets.get.cache_clear()


def test_a_package_adds_a_system(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "theirs", _SYSTEM.format(name="other"), "hrvqvae.systems", other="SYSTEM")
    assert [*SYSTEMS][-1] == "other"
    assert "other" in SYSTEMS
    assert SYSTEMS.get("other") is SYSTEMS.entries()[-1]
    assert SYSTEMS.faults() == []
    assert "other/mnist" in presets.names()
    assert main(["presets"]) == 0
    captured = capsys.readouterr()
    assert "\nother/mnist " in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (
            "import nothing_of_this_name",
            "can't be imported (ModuleNotFoundError: No module named 'nothing_of_this_name')",
        ),
        ("raise SystemError('two\\nlines')", "can't be imported (SystemError: two lines)"),
        ("SYTSEM = None", "can't be imported (AttributeError: module 'theirs' has no attribute 'SYSTEM')"),
        ("SYSTEM = None", "is a NoneType; it must be a System"),
        (_SYSTEM.format(name="another"), "calls itself 'another'; both names must be the same"),
    ],
)
def test_a_broken_package_is_named_and_breaks_nothing_else(
    source: str, fault: str, site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "theirs", source, "hrvqvae.systems", other="SYSTEM")
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    line = f"the system 'other' of the package theirs {fault}"
    assert SYSTEMS.faults() == [line]
    assert [entry.name for entry in SYSTEMS.entries()] == [*SYSTEMS.built_in]
    assert main(["presets"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith("hrvqvae/mnist ")
    assert "other" not in captured.out
    assert captured.err == f"hrvqvae: {line}\n"
    assert main(["train", "hrvqvae/mnist", "--model.quantizer.codewords", "8", "--print_config"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["train", "hrvqvae/mnst"]) == 2
    assert "did you mean hrvqvae/mnist" in capsys.readouterr().err
    assert main(["train", "other/mnist"]) == 2
    assert capsys.readouterr().err == f"hrvqvae: {line}\n"


def test_a_name_of_ours_is_refused(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "theirs", _SYSTEM.format(name="vqvae2"), "hrvqvae.systems", vqvae2="SYSTEM")
    line = "several packages add a system 'vqvae2': theirs and hrvqvae"
    with pytest.raises(InputError, match=line):
        SYSTEMS.get("vqvae2")
    assert [*SYSTEMS].count("vqvae2") == 1
    assert main(["presets"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"hrvqvae: {line}\n"
    assert "\nvqvae/mnist " in captured.out
    assert "vqvae2/" not in captured.out


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    for package in ("theirs", "hers"):
        install(site, package, _SYSTEM.format(name="other"), "hrvqvae.systems", other="SYSTEM")
    with pytest.raises(InputError, match="several packages add a system 'other': hers and theirs"):
        SYSTEMS.get("other")
    assert [*SYSTEMS].count("other") == 1
    assert SYSTEMS.get("hrvqvae").name == "hrvqvae"


@pytest.mark.parametrize("registry", [SYSTEMS, PRIORS, DATASETS], ids=lambda registry: registry.group)
def test_unknown_names(registry: Registry[object]) -> None:  # type: ignore[type-var]
    for name in registry:
        with pytest.raises(InputError, match=f"unknown {registry.what} '{name}x': did you mean .*{name}"):
            registry.get(f"{name}x")
    with pytest.raises(InputError, match=f"there are {', '.join(registry)}$"):
        registry.get("0")


def test_what_is_registered_has_its_name_and_what_it_names_is_there() -> None:
    for registry in (SYSTEMS, PRIORS, DATASETS):
        assert [entry.name for entry in registry.entries()] == [*registry]
    for system in SYSTEMS.entries():
        assert system.config.system == system.name
    for network in PRIORS.entries():
        assert network.config().kind == network.name


def test_names_and_help_import_no_entry(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom hrvqvae.config.registry import DATASETS, PRIORS, SYSTEMS\n"
        "print([*SYSTEMS, *PRIORS, *DATASETS] != [], 'hrvqvae' in SYSTEMS)\n"
        "rooms = ('hrvqvae.models', 'hrvqvae.priors', 'hrvqvae.data')\n"
        "print([name for name in sys.modules if name.startswith(rooms)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "True True\n[]\n"


def test_an_entry_of_another_kind_is_refused(site: Path) -> None:
    source = 'from hrvqvae.config.registry import PRIORS\nPRIOR = PRIORS.get("transformer")\n'
    install(site, "confused", source, "hrvqvae.systems", transformer="PRIOR")
    with pytest.raises(InputError, match=r"package confused is a PriorNetwork; it must be a System$"):
        SYSTEMS.get("transformer")
