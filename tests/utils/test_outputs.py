"""Names that every system can write, in the folder and nowhere else; what exists, and what is read, is kept."""

import os
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrvqvae.utils.errors import InputError, printable
from hrvqvae.utils.outputs import Outputs, check_output, safe_name, write_output

NAMES = st.one_of(
    st.text(st.characters(), max_size=30),
    st.lists(
        st.sampled_from(
            ["..", ".", "", "a", "C:", "con", "NUL.txt", "x" * 300, "b ", "c.", "d\\e", "\x1b[2J", "\ud800", "LPT¹"]
        ),
        max_size=6,
    ).map("/".join),
    st.sampled_from(["/abs/x", "a/../../b", "~/x", "-rf", ".lock", ".writing-1", "x/" * 3000, "é" * 300]),
)


@settings(max_examples=300, deadline=None)
@given(name=NAMES)
def test_a_safe_name_leads_nowhere_and_stays_as_it_is(name: str) -> None:
    safe = safe_name(name)
    assert safe_name(safe) == safe
    assert len(safe.encode()) <= 800
    assert printable(safe).isprintable()
    parts = safe.split("/")
    assert all(0 < len(part.encode()) <= 200 and part[0] != "." and part[-1] not in ". " for part in parts)
    assert not any(c in '\\:*?"<>|' or unicodedata.category(c) == "Cc" for c in safe)
    path = PureWindowsPath(safe)
    assert (path.is_reserved(), path.drive, PurePosixPath(safe).is_absolute()) == (False, "", False)


@settings(max_examples=100, deadline=None)
@given(names=st.lists(st.one_of(NAMES, st.text("aAéÉ/.", max_size=4)), max_size=12))
def test_outputs_differ_on_every_system(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """By case and by Unicode form; none is a file where another needs a folder."""
    folder = tmp_path_factory.mktemp("out") / "deep"
    outputs = Outputs(folder)
    paths = [outputs.reserve(name, ".png") for name in names]
    keys = [unicodedata.normalize("NFC", str(path).casefold()) for path in paths]
    assert len(set(keys)) == len(keys)
    for path in paths:
        write_output(path, b"x")
    assert {path for path in folder.rglob("*") if path.is_file()} == set(paths)


def test_what_exists_and_what_is_read_is_kept(tmp_path: Path) -> None:
    source, target, link = tmp_path / "in.png", tmp_path / "out.png", tmp_path / "link.png"
    for path in (source, target):
        path.write_bytes(b"mine")
    os.link(source, link)
    for path, force, message in (
        (target, False, "exists already; choose another output, or overwrite it with --force"),
        (source, True, "is an input and is never overwritten"), (link, True, "is an input"),
        (tmp_path / "x.jpg", True, "must end in .png"), (source / "x.png", True, "can't be written"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            check_output(path, force=force, inputs=[source], suffix=".png")
    check_output(target, force=True, inputs=[source])
    for outputs, name, message in (
        (Outputs(tmp_path), "out", "exists already"),
        (Outputs(tmp_path, force=True, inputs=[source]), "in", "an input"),
        (Outputs(tmp_path.parent), tmp_path.name, "is a folder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            outputs.reserve(name, "" if name == tmp_path.name else ".png")
    single = Outputs(tmp_path / "new.PNG", [".png"])
    assert single.reserve("a", ".png") == tmp_path / "new.PNG"
    with pytest.raises(InputError, match="takes one image"):
        single.reserve("b", ".png")
    for name in ("x.hvr", "x.jpg"):
        with pytest.raises(InputError, match="must end in .png, or be a folder that exists"):
            Outputs(tmp_path / name, [".png"])


def test_links_are_followed_to_their_file_and_never_out_of_the_folder(tmp_path: Path) -> None:
    """A link that is named stays a link; one inside of the folder that leads out is refused, also to no file."""
    inside, outside = tmp_path / "in", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "folder").symlink_to(outside)
    (inside / "x.png").symlink_to(outside / "none.png")
    for name in ("folder/y", "x"):
        with pytest.raises(InputError, match="leads out of .* by a symbolic link"):
            Outputs(inside, force=True).reserve(name, ".png")
    write_output(inside / "x.png", b"new")
    assert (inside / "x.png").is_symlink()
    assert (outside / "none.png").read_bytes() == b"new"


def test_control_characters_and_bytes_that_are_no_text_are_escaped() -> None:
    assert printable("a\x1b[2Jb\n\udce9é") == "a\\x1b[2Jb\\n\\udce9é"
