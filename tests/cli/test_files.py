"""Files of codes and zips of them on the command line: compress, inspect, decompress."""

import io
import os
import re
import shutil
import signal
import tarfile
import warnings
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

import hrvqvae
from hrvqvae import image_files, pictures
from hrvqvae.cli import main
from hrvqvae.compression import hrv
from hrvqvae.compression.zips import read_zip
from hrvqvae.data.images import read_image
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.priors.generative import Sampled
from hrvqvae.utils.outputs import TEMPORARY
from tests.conftest import (
    check_refusals,
    do,
    ended,
    parametrize,
    same,
    shared_fixture,
    write_picture,
)
from tests.data.stored import folder_of, write_parquet, write_tar
from tests.trained_run import tiny_run_with_entropy_model


def save_images(folder):
    for number, size in enumerate(((12, 12), (12, 12), (30, 7))):
        write_picture(folder / f"{number}.png", number, size, "L")
    write_picture(folder / "more" / "0.png", 9, (12, 12), "L")
    return folder


@shared_fixture
def run(mnist_root):
    return tiny_run_with_entropy_model(mnist_root)


@shared_fixture
def images(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images"))


def pixels(path):
    return read_image(path, 1)


def as_bytes(image):
    return (image * 255).round().byte()


def test_one_file_there_and_back(run, images, tmp_path, monkeypatch):
    file = tmp_path / "x.hrv"
    out = tmp_path / "y.png"
    sheet = tmp_path / "sheet.png"
    printed = do(f"compress {run} {images}/2.png -o {file} --device cpu")
    size = file.stat().st_size
    assert f"1 image, {size} bytes" in printed
    inspect = f"inspect {file} --model {run} -o"
    printed = do(f"{inspect} {sheet}")
    assert "7x30 pixels (height, width)" in printed
    assert re.search(rf"^level 3 .* {size}\n\nwhole\n", printed, re.MULTILINE)
    assert read_image(sheet, 3).shape[2] > 30
    again = f"decompress {file} -o {out} --model {run}"
    do(f"{again} --levels 2")
    model = hrvqvae.load(run)
    codes = model.encode(pixels(images / "2.png")[None])
    expected = as_bytes(model.decode(codes, levels=2, size=(7, 30))[0])
    assert same(pixels(out), expected)

    file.write_bytes(file.read_bytes()[:-1])
    damaged = "level 3 is cut short or damaged"
    check_refusals(f"""
        {again} | overwrite it with --force
        {again} --force | {damaged}; decoded from 2 whole levels; 1 image written
    """)
    assert same(pixels(out), expected)
    # of a system that decodes all levels or none
    monkeypatch.setattr(SingleGridAutoencoder, "prefixes", (3,))
    assert damaged in ended(2, f"{inspect} {tmp_path}/none.png")
    assert not (tmp_path / "none.png").exists()


def test_tars_parquet_files_and_lists_are_taken_as_folders_are(run, tmp_path):
    folder = save_images(tmp_path / "images")
    files = folder_of(folder)
    write_tar(tmp_path / "t-000000.tar", files)
    labels = [[0, 1]] * 4  # of a type that is refused in training
    write_parquet(tmp_path / "p-0.parquet", list(files.values()), labels, paths=list(files))
    names = "\n".join(f"{name}\tlabel" for name in files)
    # with a byte order mark, as on Windows
    (folder / "names.txt").write_text(names, encoding="utf-8-sig")
    codes = []
    for stored in ("images", "t-000000.tar", "p-*.parquet", "images/names.txt"):
        out = tmp_path / f"codes-{len(codes)}"
        do(f"compress {run} {tmp_path}/{stored} -o {out}")
        codes.append(folder_of(out))
    assert len(codes[0]) == 4
    assert codes[1:] == [codes[0]] * 3


def test_a_folder_gets_a_file_for_each_image(run, images, tmp_path):
    codes = tmp_path / "codes"
    back = tmp_path / "back"
    first = codes / "0.hrv"
    again = f"compress {run} {images} -o {codes}"
    do(f"{again} --levels 1")
    assert [*folder_of(codes)] == ["0.hrv", "1.hrv", "2.hrv", "more/0.hrv"]
    first.unlink()
    advice = "choose another output, or overwrite it with --force"
    check_refusals(f"{again} | 1.hrv exists already; {advice}")
    assert not first.exists()
    do(f"{again} --force")
    do(f"decompress {first} {codes}/1.hrv -o {back} --model {run}")
    assert [*folder_of(back)] == ["0.png", "1.png"]
    do(f"decompress {codes} -o {tmp_path}/all --model {run}")
    assert [*folder_of(tmp_path / "all")] == ["0.png", "1.png", "2.png", "more/0.png"]
    told = "has neither files of codes (.hrv) nor zips of them"
    check_refusals(f"decompress {images} -o {tmp_path}/none --model {run} | {told}")


def test_a_zip_is_a_folder_of_files(run, images, tmp_path):
    path = tmp_path / "x.zip"
    back = tmp_path / "back"
    again = f"compress {run} {images} -o {path}"
    do(again)
    do(f"compress {run} {images} -o {tmp_path}/files")
    files = folder_of(tmp_path / "files")
    assert dict(read_zip(path)) == files
    printed = do(f"inspect {path}")
    assert f"{path}: 4 images, " in printed
    assert "sizes: 7x30, 12x12" in printed
    check_refusals(f"{again} | overwrite it with --force")
    do(f"compress {run} {images}/0.png -o {path} --force")
    assert [name for name, _ in read_zip(path)] == ["0.hrv"]

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    do(f"decompress {path} -o {back} --model {run}")
    model = hrvqvae.load(run)
    (expected,) = model.decompress(model.compress(pixels(images / "2.png")[None]))
    assert same(pixels(back / "2.png"), as_bytes(expected))


def test_names_keep_their_endings_where_they_must(run, tmp_path):
    for name in ("0.png", "0.jpg", "1.png"):
        write_picture(tmp_path / "in" / name, 0, (12, 12), "L")
    do(f"compress {run} {tmp_path}/in -o {tmp_path}/out")
    assert {*folder_of(tmp_path / "out")} == {"0.png.hrv", "0.jpg.hrv", "1.hrv"}


def test_an_interrupted_call_goes_on(run, images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    command = f"compress {run} {images} -o {out}"
    late = f"compress {run} {images} -o {tmp_path}/late"
    do(f"compress {run} {images} -o {tmp_path}/whole")
    expected = folder_of(tmp_path / "whole")
    monkeypatch.setattr(image_files, "_BATCH_IMAGES", 1)
    write = image_files.write_output

    def interrupt(path, content):
        if path.name == "2.hrv":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(image_files, "write_output", interrupt)
        printed = ended(130, f"{command} --force")
        assert f"{out} has 2 of 4 files; the same command without --force goes on" in printed
        assert f"{out} has 2 of 4 files; the same command goes on" in ended(130, command)
    kept = (out / "0.hrv").stat()

    # nothing is mixed
    check_refusals(f"""
        {command} --levels 2 | holds files of an interrupted call
        compress mnist {images} -o {out} | holds files of an interrupted call
        compress {run} {images}/0.png -o {out} | holds files of an interrupted call
    """)
    printed = do(command)
    assert "2 images, " in printed
    assert (out / "0.hrv").stat() == kept
    assert folder_of(out) == expected
    check_refusals(f"{command} | exists already")

    # after the last file, but before the end
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", Mock(side_effect=KeyboardInterrupt))
        ended(130, late)
    assert "has 4 of 4 files already" in ended(0, late)
    do(f"{command} --levels 1 --force")
    assert folder_of(out) != expected


def test_the_shipped_model_is_found_by_what_it_wrote(images, tmp_path):
    decoded = []
    for name in ("x.hrv", "x.zip"):
        do(f"compress mnist {images}/0.png -o {tmp_path}/{name}")
        do(f"decompress {tmp_path}/{name} -o {tmp_path}/{name}.png")
        decoded.append(pixels(tmp_path / f"{name}.png"))
    assert same(*decoded)


def test_what_can_not_be_done(run, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = images / "0.png"
    Path("notes.txt").write_text("words")
    for out in ("x.hrv", "x.zip"):
        do(f"compress {run} {image} -o {out}")
    with tarfile.open("twice.tar", "w") as tar:
        tar.add(image, "0.png")
        tar.add(images / "1.png", "0.png")
    new = f"compress {run} {image} -o new.hrv"
    check_refusals(f"""
        compress {run} {images} -o y.hrv | takes one image, and there are more
        compress {run} {image} {images}/more/0.png -o d | would both be named 0
        compress {run} twice.tar -o d | would both be named 0
        compress {run} notes.txt -o new.hrv | notes.txt is read as a list of images, and
        compress {run} {image} -o x.hrv | exists already
        compress {run} {image} -o x.hvr | end in .hrv or .zip, or be a folder that exists
        {new} --bytes 6 | {image} takes
        {new} --bytes 60 --lmbda 1 | a limit of bytes, or a lambda and an effort
        decompress x.hrv -o y.png | not inside the package: name it with --model
        decompress x.zip -o y.png | x.zip: 0.hrv was made by a model
        decompress x.hrva -o y.png | hrvqvae 1.0.0 reads X.hrva
        compress {run} {image} -o x.hrva | archives are zips now (X.zip)
        compress {run} x.hrva -o new.hrv | archives are zips now (X.zip)
        inspect x.hrva | archives are zips now (X.zip)
        decompress {image} -o y.png --model {run} | is not a file of codes
        decompress no.hrv -o y.png --model {run} | no.hrv': there is no such file
        inspect x.zip -o s.png | -o and --model are for one file
        inspect x.zip --model {run} | -o and --model are for one file
        fit-entropy-model {run} --effort 0 | --effort is 0.0; it must be above 0
    """)
    assert {*folder_of(tmp_path)} == {"notes.txt", "twice.tar", "x.hrv", "x.zip"}


def test_broken_images_can_be_left_out(run, tmp_path, monkeypatch):
    save_images(tmp_path / "in")
    (tmp_path / "in" / "2.png").write_bytes(b"none")
    monkeypatch.setattr(image_files, "_BATCH_IMAGES", 1)  # one is written before the broken one
    for out, count, goes_on in (("y.zip", 3, False), ("files", 2, True)):
        command = f"compress {run} {tmp_path}/in -o {tmp_path}/{out}"
        check_refusals(f"{command} | leave such images out with --on-error skip")
        printed = ended(0, f"{command} --on-error skip")
        assert f"{count} images" in printed
        assert "2.png" in printed
        assert ("files already" in printed) == goes_on
    names = ["0.hrv", "1.hrv", "more/0.hrv"]
    assert [name for name, _ in read_zip(tmp_path / "y.zip")] == names
    assert [*folder_of(tmp_path / "files")] == names
    command = f"compress {run} {tmp_path}/in/2.png -o {tmp_path}/z.zip --on-error skip"
    assert "no image could be read" in ended(2, command)
    assert not (tmp_path / "z.zip").exists()


def test_any_name_of_a_file_can_be_zipped_and_read_again(run, images, tmp_path):
    """With a backslash, a colon or a line break; the terminal gets none of their control
    characters.
    """
    image = images / "0.png"
    for name in ("a\\b", "C:x\x1b[2J", "two\nlines", "x" * 248):
        shutil.copy(image, tmp_path / f"{name}.png")
    for out in ("x.zip", "codes"):
        do(f"compress {run} {tmp_path} -o {tmp_path}/{out}")
    printed = ended(0, f"decompress {tmp_path}/x.zip -o {tmp_path}/back --model {run}")
    assert "4 images" in printed
    assert "\x1b" not in printed
    files, codes = (
        {file.stem for file in (tmp_path / folder).iterdir()} for folder in ("back", "codes")
    )
    assert files == codes > {"a_b", "C_x_[2J", "two_lines"}
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("../../out.png", "/abs/x.png"):
            tar.add(image, name)
    do(f"compress {run} {tmp_path}/t.tar -o {tmp_path}/deep/codes")
    assert {*folder_of(tmp_path / "deep")} == {"codes/out.hrv", "codes/abs/x.hrv"}
    assert not (tmp_path / "out.hrv").exists()


@parametrize(
    "names", [["../out"], ["/out"], ["a/../../out"], ["..\\out"], ["C:/out"], ["x", "X", "x"]]
)
def test_a_zip_writes_nowhere_but_where_it_is_told(names, run, tmp_path):
    """A link in it is no file of codes."""
    (content,) = hrvqvae.load(run).compress(torch.zeros(1, 1, 12, 12))
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice
        for name in names:
            opened.writestr(f"{name}.hrv", content)
        link = zipfile.ZipInfo("link.hrv")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "../../out.png")
    out = tmp_path / "in" / "side"
    told = ended(2, f"decompress {path} -o {out} --model {run}")
    assert "names are changed" in told
    assert "link.hrv is not a file of codes" in told
    written = [*tmp_path.rglob("*.png")]
    assert len(written) == len(names)
    assert all(file.is_relative_to(out) and not file.is_symlink() for file in written)


def test_what_is_damaged_stops_no_other_image(run, images, tmp_path):
    """An entry or the end of a zip, and a file among others: the others are written, and the exit
    code is 2.
    """
    path = tmp_path / "X.ZIP"
    out = tmp_path / "out"
    do(f"compress {run} {images} -o {path}")
    content = path.read_bytes()
    entry = dict(read_zip(path))["1.hrv"]
    flipped = bytearray(content)
    flipped[content.index(entry) + len(entry) - 1] ^= 1
    without_end = content[: content.index(b"PK\1\2")]
    whole = {"0.png", "2.png", "more/0.png"}
    for damaged, told, names in (
        (flipped, "1.hrv is damaged", whole),
        (without_end, "the directory at its end is damaged", whole | {"1.png"}),
    ):
        path.write_bytes(damaged)
        line = f"{path}: {told}; {len(names)} images written"
        check_refusals(f"decompress {path} -o {out} --model {run} --force | {line}")
        assert {*folder_of(out)} == names
        printed = ended(2, f"inspect {path}")
        assert f"{len(names)} images" in printed
        assert "damaged: " in printed
        shutil.rmtree(out)

    codes = tmp_path / "codes"
    do(f"compress {run} {images} -o {codes}")
    (codes / "1.hrv").write_bytes(b"none")
    line = f"{codes}/1.hrv is not a file of codes"
    check_refusals(f"decompress {codes} -o {out} --model {run} | {line}")
    assert {*folder_of(out)} == whole


def test_work_is_cut_by_pixels(run, images, tmp_path, monkeypatch):
    path = tmp_path / "x.zip"
    monkeypatch.setattr(image_files, "_BATCH_PIXELS", 300)
    monkeypatch.setattr(hrv, "BATCH_PIXELS", 300)
    compress = Mock(wraps=hrvqvae.load(run).compress)
    monkeypatch.setattr(hrvqvae.model.Model, "compress", compress)
    do(f"compress {run} {images} -o {path}")
    assert [len(call.args[0]) for call in compress.call_args_list] == [2, 1, 1]
    decode = Mock(wraps=image_files.decode_images)
    monkeypatch.setattr(image_files, "decode_images", decode)
    do(f"decompress {path} -o {tmp_path}/out --model {run}")
    assert [len(call.args[1]) for call in decode.call_args_list] == [2, 1, 1]


def test_folders_and_what_a_killed_writer_left_are_no_images(run, images, tmp_path):
    (tmp_path / "in" / "x.png").mkdir(parents=True)
    for name in ("a.png", f"{TEMPORARY}b.png"):
        shutil.copy(images / "0.png", tmp_path / "in" / name)
    assert "1 image," in do(f"compress {run} {tmp_path}/in -o {tmp_path}/x.zip")


def test_a_command_that_is_ended_leaves_nothing(images, tmp_path, monkeypatch):
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)  # nohup ignores one
        monkeypatch.setattr(os, "fsync", lambda _, signum=signum: signal.raise_signal(signum))
        with pytest.raises(SystemExit, match=str(128 + signum)):
            do(f"compress mnist {images}/2.png -o {tmp_path}/x.hrv")
        assert signal.getsignal(signum) == signal.SIG_DFL
    assert not [*tmp_path.iterdir()]


def test_a_strict_terminal_prints_names_that_are_no_text(run, images, tmp_path):
    out = io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict")
    with redirect_stdout(out):
        words = f"compress {run} {images}/0.png -o {tmp_path}/caf\udce9.hrv".split()
        assert main(words) == 0
        out.flush()
    assert b"caf\\udce9.hrv" in out.buffer.getvalue()


def test_a_class_is_no_path(tmp_path, monkeypatch):
    classes = ("../victim/photo", "t-shirt/top", "CON", "a")
    drawn = Sampled(torch.zeros(4, 1, 8, 8), classes, ())
    for name, result in (
        ("load_priors", lambda *_: SimpleNamespace(classes=classes)),
        ("draw_labels", lambda *_: torch.arange(4)),
        ("draw_batches", lambda _, missing, **__: [drawn] if missing else []),
    ):
        monkeypatch.setattr(pictures.Model, name, result)
    (tmp_path / "victim").mkdir()
    command = f"sample mnist -n 4 --save-dir {tmp_path}/each -o {tmp_path}"
    do(f"{command}/sheet.png")
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert written == {
        "sheet.png",
        "each/_._victim_photo-0000.png",
        "each/t-shirt_top-0001.png",
        "each/CON-0002.png",
        "each/a-0003.png",
    }
    together = tmp_path / "all"
    do(f"sample mnist -n 4 -o {together}/a-0003.png --save-dir {together}")
    assert len([*together.glob("*.png")]) == 5
    (tmp_path / "loop.png").symlink_to("loop.png")
    check_refusals(f"""
        {command}/sheet.png | exists already
        {command}/new.png --seed 1 | has other images already
        sample mnist -n 4 -o {tmp_path}/loop.png | loop
        sample mnist -n 4 -o '' | is empty; name a file or a folder
    """)
