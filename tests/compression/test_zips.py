"""Zips of files of codes: other tools read them, a damaged entry hides no other."""

import zipfile

import pytest

from hrvqvae.compression.zips import open_zip, write_zip
from hrvqvae.utils.errors import DamagedFileError
from tests.compression.made import TREE, files_of, flip_bit
from tests.conftest import names_in, run_python

FILES = {f"{name}.hrv": files_of(TREE, (9, 7), seed=ord(name))[0] for name in "abc"}


def write(path):
    write_zip(path, FILES.items())
    return path.read_bytes()


def read_entry(read):
    try:
        return read()
    except DamagedFileError:
        return None


def read(path, content):
    path.write_bytes(content)
    try:
        entries = open_zip(path)
    except DamagedFileError:
        return {"": None}
    assert len(dict(entries)) == len(entries)
    return {name: read_entry(content) for name, content in entries}


def test_another_tool_reads_it_and_a_file_takes_76_bytes_and_twice_its_name(tmp_path):
    content = write(tmp_path / "x.zip")
    assert read(tmp_path / "x.zip", content) == FILES
    run_python("-m", "zipfile", "-e", "x.zip", "out", cwd=tmp_path)
    out = tmp_path / "out"
    assert {name: (out / name).read_bytes() for name in names_in(out)} == FILES
    sizes = [len(file) + 76 + 2 * len(name) for name, file in FILES.items()]
    assert len(content) == sum(sizes) + 22
    assert content == write(tmp_path / "again.zip")  # the time is not in it


def test_zips_of_other_tools_are_read(tmp_path):
    """Packed entries, folders, files that are no codes, and a comment that looks like an entry."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.mkdir("folder")
        opened.writestr("folder/notes.txt", "words")
        opened.writestr("__MACOSX/folder/._a.hrv", "attributes")
        opened.writestr("folder/a.hrv", bytes(1000) + FILES["a.hrv"])
        opened.getinfo("folder/a.hrv").comment = b"PK\1\2"
    content = (tmp_path / "x.zip").read_bytes()
    assert read(tmp_path / "x.zip", content) == {"folder/a.hrv": bytes(1000) + FILES["a.hrv"]}


def test_a_flipped_bit_in_an_entry_loses_no_other_entry(tmp_path):
    content = write(tmp_path / "x.zip")
    begin = content.index(FILES["b.hrv"])
    for place in range(8 * begin, 8 * (begin + len(FILES["b.hrv"]))):
        entries = read(tmp_path / "y.zip", flip_bit(content, place))
        assert entries == FILES | {"b.hrv": None}, place


def test_what_is_cut_short_is_refused(tmp_path):
    content = write(tmp_path / "x.zip")
    for length in range(len(content)):
        assert read(tmp_path / "y.zip", content[:length]) == {"": None}, length


def test_what_is_no_zip_is_refused(tmp_path):
    for content in (b"", b"none", zipfile.stringEndArchive + bytes(18)):
        assert read(tmp_path / "x.zip", content) == {"": None}
    with pytest.raises(FileNotFoundError):
        open_zip(tmp_path / "absent.zip")


def test_an_entry_that_unpacks_to_too_much_is_lost(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("bomb.hrv", bytes(1 << 24))
        opened.writestr("a.hrv", FILES["a.hrv"])
    content = (tmp_path / "x.zip").read_bytes()
    assert read(tmp_path / "x.zip", content) == {"a.hrv": FILES["a.hrv"], "bomb.hrv": None}
