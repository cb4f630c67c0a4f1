"""Files of codes and zips of them on the command line: compress, inspect, decompress."""

import os
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

import hrvqvae
from hrvqvae import image_files, pictures
from hrvqvae.compression import hrv
from hrvqvae.compression.zips import open_zip, write_zip
from hrvqvae.data.images import read_image
from hrvqvae.priors.generative import Sampled
from hrvqvae.utils.outputs import TEMPORARY
from tests.conftest import (
    cells_of,
    check_refusals,
    do,
    ended,
    parametrize,
    same,
    shared_fixture,
    write_picture,
)
from tests.data.stored import folder_of
from tests.trained_run import tiny_run_with_entropy_model

pytestmark = pytest.mark.usefixtures("in_tmp_path")


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


def files_in(path):
    """Return the content of each file of codes in a zip."""
    return {name: read() for name, read in open_zip(Path(path))}


def pixels(path):
    return read_image(path, 1)


def as_bytes(image):
    return (image * 255).round().byte()


def test_one_file_there_and_back(run, images, monkeypatch):
    file = Path("x.hrv")
    out = Path("y.png")
    printed = do(f"compress {run} {images}/2.png -o {file} --device cpu")
    size = file.stat().st_size
    assert f"1 image, {size} bytes" in printed
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
        {again} --force | {damaged}; 1 image written
    """)
    assert same(pixels(out), expected)


def test_a_folder_gets_a_file_for_each_image(run, images):
    codes = Path("codes")
    first = codes / "0.hrv"
    again = f"compress {run} {images} -o codes"
    do(again)
    assert [*folder_of(codes)] == ["0.hrv", "1.hrv", "2.hrv", "more/0.hrv"]
    first.unlink()
    before = (codes / "1.hrv").read_bytes()
    do(again)
    assert first.exists()
    assert (codes / "1.hrv").read_bytes() == before
    do(f"decompress {first} codes/1.hrv -o back --model {run}")
    assert [*folder_of(Path("back"))] == ["0.png", "1.png"]
    do(f"decompress codes -o all --model {run}")
    assert [*folder_of(Path("all"))] == ["0.png", "1.png", "2.png", "more/0.png"]
    told = "has no files of codes"
    check_refusals(f"decompress {images} -o none --model {run} | {told}")


def test_what_was_begun_otherwise_is_refused(run, images):
    """For compress, also to a zip, and for decompress."""
    few = f"{images}/0.png {images}/1.png"
    otherwise = "was begun with other options or another model"
    for out, parts in (("codes", "codes"), ("x.zip", "x.zip.parts")):
        Path(parts).mkdir()
        do(f"compress {run} {few} -o {parts} --levels 1")  # as a call that was stopped
        command = f"compress {run} {images} -o {out}"
        check_refusals(f"""
            {command} | {parts} {otherwise}
            {command} --levels 1 --effort 1 | {parts} {otherwise}
            {command} --levels 1 --bytes 99 | {parts} {otherwise}
            compress mnist {images} -o {out} --levels 1 | {parts} {otherwise}
            compress mnist {images}/2.png -o {out} --levels 1 | {parts} {otherwise}
        """)
        # of two models, after `--force`, none is kept
        do(f"compress mnist {images}/2.png -o {parts} --levels 1 --force")
        do(f"compress mnist {images} -o {out} --levels 1")
    do(f"compress mnist {images} -o whole --levels 1")
    assert folder_of(Path("codes")) == folder_of(Path("whole"))
    assert files_in("x.zip") == folder_of(Path("whole"))
    do("decompress whole -o back --levels 1")
    check_refusals(f"decompress whole -o back | back {otherwise}")
    do("decompress whole -o whole --levels 1")


def test_an_image_that_changed_is_compressed_anew(run):
    save_images(Path("in"))
    command = f"compress {run} in -o out"
    do(command)
    before = folder_of(Path("out"))
    write_picture(Path("older.png"), 5, (12, 12), "L")
    os.utime("older.png", (0, 0))
    Path("older.png").replace("in/0.png")
    assert "4 files already; 3 newer" in ended(0, command)
    after = folder_of(Path("out"))
    assert {name for name in after if after[name] != before[name]} == {"0.hrv"}
    assert "4 files already; 4 newer" in ended(0, command)


def test_a_zip_is_a_folder_of_files(run, images):
    again = f"compress {run} {images} -o x.zip"
    do(again)
    do(f"compress {run} {images} -o files")
    assert files_in("x.zip") == folder_of(Path("files"))
    check_refusals(f"{again} | overwrite it with --force")
    do(f"decompress x.zip -o back --model {run}")
    model = hrvqvae.load(run)
    (expected,) = model.decompress(model.compress(pixels(images / "2.png")[None]))
    assert same(pixels(Path("back/2.png")), as_bytes(expected))
    do(f"compress {run} {images}/0.png -o x.zip --force")
    ((name, content),) = files_in("x.zip").items()
    assert name == "0.hrv"
    write_zip(Path("upper.zip"), [("A.HRV", content)])
    do(f"decompress upper.zip -o upper --model {run}")
    assert [*folder_of(Path("upper"))] == ["A.png"]


def test_what_is_done_is_kept_when_a_call_is_interrupted(run, images, monkeypatch):
    """Each batch is written as soon as it is done, and a second call skips its files."""
    do(f"compress {run} {images} -o codes")
    monkeypatch.setattr(image_files, "_BATCH_VALUES", 1)
    for command, writer, name in (
        (f"compress {run} {images} -o out", "write_output", "2.hrv"),
        (f"decompress codes -o out --model {run}", "write_image", "2.png"),
    ):
        write = getattr(image_files, writer)

        def interrupt(first, second, write=write, name=name):
            if name in (getattr(first, "name", ""), getattr(second, "name", "")):
                raise KeyboardInterrupt
            write(first, second)

        with monkeypatch.context() as patched:
            patched.setattr(image_files, writer, interrupt)
            ended(130, command)
        suffix = Path(name).suffix
        kept = {path: path.stat() for path in sorted(Path("out").glob(f"*{suffix}"))}
        assert [path.stem for path in kept] == ["0", "1"]
        assert "out has 2 files already" in ended(0, command)
        assert kept == {path: path.stat() for path in kept}
        assert len([*Path("out").rglob(f"*{suffix}")]) == 4
        do(f"{command} --levels 1 --force")
        assert kept != {path: path.stat() for path in kept}


def test_a_killed_call_loses_no_finished_file_of_a_zip(images):
    words = f"compress mnist {images} -o x.zip".split()
    kill = (
        "import os, sys; from hrvqvae import image_files; from hrvqvae.cli import main;"
        "write = image_files.write_output; image_files._BATCH_VALUES = 1;"
        "image_files.write_output = lambda path, content:"
        " os.kill(os.getpid(), 9) if path.name == '2.hrv' else write(path, content);"
        "main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", kill, *words], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not Path("x.zip").exists()
    kept = folder_of(Path("x.zip.parts"))
    assert [*kept] == ["0.hrv", "1.hrv"]
    assert "x.zip.parts has 2 files already" in ended(0, " ".join(words))
    assert not Path("x.zip.parts").exists()
    do(f"compress mnist {images} -o whole.zip")
    assert Path("x.zip").read_bytes() == Path("whole.zip").read_bytes()


def test_a_call_that_fails_before_its_first_file_changes_nothing(images, monkeypatch):
    command = f"compress mnist {images}/0.png {images}/1.png -o out"
    too_few = " --bytes 6"
    check_refusals(f"{command}{too_few} | takes")
    assert not Path("out").exists()
    do(command)
    before = folder_of(Path("out"))
    for wrong in (too_few, " --levels 9"):
        ended(2, f"{command} --force{wrong}")
        assert folder_of(Path("out")) == before
    Path("thumb").touch()  # named as a model of the package is
    do("decompress out -o decoded")
    monkeypatch.setattr(hrvqvae.Model, "compress", Mock(side_effect=KeyboardInterrupt))
    assert " files; " not in ended(130, f"{command} --force")
    assert folder_of(Path("out")) == before


def test_the_shipped_model_is_found_by_what_it_wrote(images):
    decoded = []
    for name in ("x.hrv", "x.zip"):
        do(f"compress mnist {images}/0.png -o {name}")
        do(f"decompress {name} -o {name}.png")
        decoded.append(pixels(Path(f"{name}.png")))
    assert same(*decoded)

    # an unknown fingerprint stops no other file
    Path("codes").mkdir()
    content = Path("x.hrv").read_bytes()
    Path("codes/known.hrv").write_bytes(content)
    unknown = Path("codes/unknown.hrv")
    fingerprint = hrv.read_header(content).fingerprint
    unknown.write_bytes(content.replace(fingerprint, bytes(len(fingerprint))))
    check_refusals(f"decompress {unknown} -o y.png | name its run with --model RUN")
    check_refusals("decompress codes -o out | name its run with --model RUN; 1 image written")
    assert {*folder_of(Path("out"))} == {"known.png"}


def test_one_cause_is_one_line(run, images):
    do(f"compress {run} {images} -o x.zip")
    check_refusals("decompress x.zip -o out | or is damaged (4 such files); name its run")
    assert not Path("out").exists()


def test_what_can_not_be_done(run, images, monkeypatch):
    image = images / "0.png"
    Path("notes.txt").write_text("words")
    for out in ("x.hrv", "x.zip"):
        do(f"compress {run} {image} -o {out}")
    new = f"compress {run} {image} -o new.hrv"
    check_refusals(f"""
        compress {run} {images} -o y.hrv | takes one image, and there are more
        compress {run} {image} {images}/more/0.png -o d | would both be named 0
        compress {run} notes.txt -o new.hrv | notes.txt is not a readable image
        compress {run} {image} -o x.hrv | exists already
        compress {run} {image} -o x.hvr | end in .hrv, or be a folder that exists
        {new} --bytes 6 | {image} takes
        decompress x.hrv -o y.png | name its run with --model RUN
        decompress x.hrv -o y.png --model mnist | another model than mnist
        decompress x.zip -o y.png | x.zip: 0.hrv was made by another model
        decompress {image} -o y.png --model {run} | is not a file of codes
        decompress no.hrv -o y.png --model {run} | no.hrv: there is no such file
        compress no-such-run no.png -o new.hrv | no.png: there is no such file
        reconstruct no-such-run no.png -o new.png | no.png: there is no such file
        complete no-such-run no.png -o new.png | no.png: there is no such file
    """)
    assert {*folder_of(Path())} == {"notes.txt", "x.hrv", "x.zip"}


def test_broken_images_can_be_left_out(run, monkeypatch):
    save_images(Path("in"))
    Path("in/2.png").write_bytes(b"none")
    monkeypatch.setattr(image_files, "_BATCH_VALUES", 1)  # one is written before the broken one
    for out in ("y.zip", "files"):
        command = f"compress {run} in -o {out}"
        check_refusals(f"{command} | leave such images out with --on-error skip")
        printed = ended(0, f"{command} --on-error skip")
        assert "2 images" in printed
        assert "2.png" in printed
        assert "1 file already" in printed
    names = ["0.hrv", "1.hrv", "more/0.hrv"]
    assert [*files_in("y.zip")] == names
    assert [*folder_of(Path("files"))] == names
    command = f"compress {run} in/2.png -o z.zip --on-error skip"
    assert "no image could be read" in ended(2, command)
    assert not Path("z.zip").exists()


def test_any_name_of_a_file_can_be_zipped_and_read_again(run, images):
    """With a backslash, a colon or a line break; the terminal gets none of their control
    characters.
    """
    image = images / "0.png"
    for name in ("a\\b", "C:x\x1b[2J", "two\nlines", "x" * 248):
        shutil.copy(image, Path(f"{name}.png"))
    for out in ("x.zip", "codes"):
        do(f"compress {run} . -o {out}")
    printed = ended(0, f"decompress x.zip -o back --model {run}")
    assert "4 images" in printed
    assert "\x1b" not in printed
    files, codes = (
        {file.stem for file in Path(folder).glob("[!.]*")} for folder in ("back", "codes")
    )
    assert files == codes > {"a\\b", "two\nlines"}


@parametrize(
    "names, is_refused",
    cells_of(r"""
    ../out | yes
    /out | yes
    a/../../out | yes
    ..\out | no
    C:/out | no
    x X x | no
"""),
)
def test_a_zip_writes_nowhere_but_where_it_is_told(names, is_refused, run):
    """A link in it is no file of codes."""
    (content,) = hrvqvae.load(run).compress(torch.zeros(1, 1, 12, 12))
    path = Path("x.zip")
    with zipfile.ZipFile(path, "w") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice
        for name in names.split():
            opened.writestr(f"{name}.hrv", content)
        link = zipfile.ZipInfo("link.hrv")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "../../out.png")
    out = Path("in/side")
    told = ended(2, f"decompress {path} -o {out} --model {run}")
    written = [*Path().rglob("*.png")]
    if is_refused == "yes":
        assert "leads out of" in told
        assert not written
        return
    assert "link.hrv is not a file of codes" in told
    assert len(written) == len(names.split())
    assert all(file.is_relative_to(out) and not file.is_symlink() for file in written)


def test_what_is_damaged_stops_no_other_image(run, images):
    """An entry of a zip, and a file among others: the others are written; exit code 2."""
    path = Path("X.ZIP")
    out = Path("out")
    do(f"compress {run} {images} -o {path}")
    content = path.read_bytes()
    entry = files_in(path)["1.hrv"]
    flipped = bytearray(content)
    flipped[content.index(entry) + len(entry) - 1] ^= 1
    path.write_bytes(flipped)
    whole = {"0.png", "2.png", "more/0.png"}
    line = f"{path}: 1.hrv is damaged; 3 images written"
    check_refusals(f"decompress {path} -o {out} --model {run} --force | {line}")
    assert {*folder_of(out)} == whole
    shutil.rmtree(out)

    do(f"compress {run} {images} -o codes")
    Path("codes/1.hrv").write_bytes(b"none")
    Path("codes/empty.zip").touch()
    printed = ended(2, f"decompress codes -o {out} --model {run}")
    assert "codes/empty.zip is no zip" in printed
    assert "3 images written" in printed
    assert "codes/1.hrv is not a file of codes" in printed
    assert {*folder_of(out)} == whole


def test_what_a_killed_writer_left_is_no_image(run, images):
    Path("in").mkdir()
    for name in ("a.png", f"{TEMPORARY}b.png"):
        shutil.copy(images / "0.png", Path("in") / name)
    assert "1 image," in do(f"compress {run} in -o x.zip")


def test_a_command_that_is_ended_leaves_nothing(images, monkeypatch):
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)  # nohup ignores one
        monkeypatch.setattr(os, "fsync", lambda _, signum=signum: signal.raise_signal(signum))
        with pytest.raises(SystemExit, match=str(128 + signum)):
            do(f"compress mnist {images}/2.png -o x.hrv")
        assert signal.getsignal(signum) == signal.SIG_DFL
    assert not [*Path().iterdir()]


def test_a_class_is_no_path(monkeypatch):
    classes = ("../victim/photo", "t-shirt/top", "CON", "a")
    drawn = Sampled(torch.zeros(4, 1, 8, 8), classes, ())
    for name, result in (
        ("load_priors", lambda *_: SimpleNamespace(classes=classes)),
        ("draw_labels", lambda *_: torch.arange(4)),
        ("draw_batches", lambda _, missing, **__: [drawn] if missing else []),
    ):
        monkeypatch.setattr(pictures.Model, name, result)
    Path("victim").mkdir()
    command = "sample mnist -n 4 --save-dir each -o"
    do(f"{command} sheet.png")
    written = {path.as_posix() for path in Path().rglob("*.png")}
    assert written == {
        "sheet.png",
        "each/.._victim_photo-0000.png",
        "each/t-shirt_top-0001.png",
        "each/CON-0002.png",
        "each/a-0003.png",
    }
    check_refusals(f"""
        {command} sheet.png | exists already
        {command} new.png --seed 1 | was begun with other options
        sample mnist -n 4 -o '' | is empty; name a file or a folder
    """)
