"""Files of codes on the command line: tables, compress, inspect, decompress, archives."""

import io
import os
import re
import shutil
import signal
import tarfile
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

import hrvqvae
from hrvqvae import image_files, pictures
from hrvqvae.cli import main
from hrvqvae.compression import hrv
from hrvqvae.compression.archive import appending, open_archive
from hrvqvae.data.images import read_image
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.priors.generative import Sampled
from hrvqvae.utils.outputs import TEMPORARY
from tests.conftest import do, done, refused, write_picture
from tests.data.stored import folder_of, write_parquet, write_tar
from tests.trained_run import tiny_run_with_entropy_model


@pytest.fixture(scope="module")
def run(mnist_root: Path) -> Path:
    return tiny_run_with_entropy_model(mnist_root)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate(((12, 12), (12, 12), (30, 7))):
        write_picture(folder / f"{number}.png", number, size, "L")
    (folder / "more").mkdir()
    write_picture(folder / "more" / "0.png", 9, (12, 12), "L")
    return folder


def pixels(path: Path) -> torch.Tensor:
    return read_image(path, 1)


def test_one_file_there_and_back(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.hrv"
    out = tmp_path / "y.png"
    printed = do("compress", run, images / "2.png", "-o", file, "--device", "cpu")
    size = file.stat().st_size
    assert f"1 image, {size} bytes" in printed
    printed = do("inspect", file, "--model", run, "-o", tmp_path / "sheet.png")
    assert "7x30 pixels (height, width)" in printed
    assert re.search(rf"^level 3 .* {size}\n\nwhole\n", printed, re.MULTILINE)
    assert read_image(tmp_path / "sheet.png", 3).shape[2] > 30
    do("decompress", file, "-o", out, "--model", run, "--levels", "2")
    model = hrvqvae.load(run)
    expected = model.decode(model.encode(pixels(images / "2.png")[None]), levels=2, size=(7, 30))[0]
    assert torch.equal(pixels(out), (expected * 255).round().byte())
    file.write_bytes(file.read_bytes()[:-1])
    assert "overwrite it with --force" in refused(["decompress", file, "-o", out, "--model", run])
    line = refused(["decompress", file, "-o", out, "--model", run, "--force"])
    assert "level 3 is cut short or damaged; decoded from 2 whole levels; 1 image written" in line
    assert torch.equal(pixels(out), (expected * 255).round().byte())
    monkeypatch.setattr(
        SingleGridAutoencoder, "prefixes", (3,)
    )  # of a system that decodes all levels or none
    code, printed, _ = done("inspect", file, "--model", run, "-o", tmp_path / "none.png")
    assert (code, "level 3 is cut short or damaged" in printed) == (2, True)
    assert not (tmp_path / "none.png").exists()


def test_tars_parquet_files_and_lists_are_taken_as_folders_are(
    run: Path, images: Path, tmp_path: Path
) -> None:
    files = folder_of(images)
    write_tar(tmp_path / "t-000000.tar", files)
    labels = [[0, 1]] * 4  # of a type that is refused in training
    write_parquet(tmp_path / "p-0.parquet", list(files.values()), labels, paths=list(files))
    paths = sorted(images.rglob("*.png"))
    names = "\n".join(f"{path.relative_to(images)}\tlabel" for path in paths)
    (images / "names.txt").write_text(
        names, encoding="utf-8-sig"
    )  # with a byte order mark, as on Windows
    found = []
    for number, given in enumerate(
        (images, tmp_path / "t-000000.tar", tmp_path / "p-*.parquet", images / "names.txt")
    ):
        out = tmp_path / f"{number}"
        do("compress", run, given, "-o", out)
        found.append(
            {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.hrv")}
        )
    (images / "names.txt").unlink()
    assert len(found[0]) == 4
    assert found[1:] == [found[0]] * 3


def test_a_folder_gets_a_file_for_each_image(run: Path, images: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    first = tmp_path / "codes" / "0.hrv"
    again = ["compress", run, images, "-o", codes]
    do(*again, "--levels", "1")
    files = sorted(codes.rglob("*.hrv"))
    assert [path.relative_to(codes).as_posix() for path in files] == [
        "0.hrv",
        "1.hrv",
        "2.hrv",
        "more/0.hrv",
    ]
    first.unlink()
    assert "1.hrv exists already; choose another output, or overwrite it with --force" in refused(
        again
    )
    assert not first.exists()
    do(*again, "--force")
    assert first.is_file()
    do("decompress", *files[:3], "-o", tmp_path / "back", "--model", run)
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"0.png", "1.png", "2.png"}
    do("decompress", codes, "-o", tmp_path / "all", "--model", run)
    written = sorted(
        path.relative_to(tmp_path / "all").as_posix() for path in (tmp_path / "all").rglob("*.png")
    )
    assert written == ["0.png", "1.png", "2.png", "more/0.png"]
    told = "has neither files of codes (.hrv) nor archives (.hrva)"
    assert told in refused(["decompress", images, "-o", tmp_path / "none", "--model", run])


def test_an_archive_grows_and_gives_images_by_name(run: Path, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.hrva"
    do("compress", run, images / "0.png", "-o", path)
    alone = path.read_bytes()
    line = refused(["compress", run, images / "more", images / "2.png", "-o", path])
    assert "another image named '0'" in line
    assert path.read_bytes() == alone
    do("compress", run, images, "-o", path)
    assert "had 4 of 4 images already" in done("compress", run, images, "-o", path)[2], (
        "it goes on where it was"
    )
    printed = do("inspect", path, "--verify")
    assert f"{path}: 4 images, by tiny" in printed
    assert "verified: 4 of 4 images whole" in printed
    assert "sizes: 7x30, 12x12" in printed
    do("decompress", path, "-o", tmp_path / "back", "--model", run, "--names", "2", "2")
    assert [one.name for one in (tmp_path / "back").iterdir()] == ["2.png"]
    model = hrvqvae.load(run)
    (expected,) = model.decompress(model.compress(pixels(images / "2.png")[None]))
    assert torch.equal(pixels(tmp_path / "back" / "2.png"), (expected * 255).round().byte())


def test_the_shipped_model_is_found_by_what_it_wrote(images: Path, tmp_path: Path) -> None:
    for name in ("x.hrv", "x.hrva"):
        do("compress", "mnist", images / "0.png", "-o", tmp_path / name)
        do("decompress", tmp_path / name, "-o", tmp_path / f"{name}.png")
    assert torch.equal(pixels(tmp_path / "x.hrv.png"), pixels(tmp_path / "x.hrva.png"))


def test_what_can_not_be_done(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hrvqvae.utils.progress.SAY_AFTER_SECONDS", 600
    )  # one line, however slow the machine is
    file = tmp_path / "x.hrv"
    new = tmp_path / "new.hrv"
    archive = tmp_path / "x.hrva"
    image = images / "0.png"
    (tmp_path / "notes.txt").write_text("words")
    for out in (file, archive):
        do("compress", run, image, "-o", out)
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        tar.add(image, "0.png")
        tar.add(images / "1.png", "0.png")
    named = ["--model", run]
    for arguments, message in (
        (
            ["compress", run, images, "-o", tmp_path / "y.hrv"],
            "takes one image, and there are more",
        ),
        (
            ["compress", run, image, images / "more" / "0.png", "-o", tmp_path / "d"],
            "would both be named 0",
        ),
        (["compress", run, tmp_path / "twice.tar", "-o", tmp_path / "d"], "would both be named 0"),
        (
            ["compress", run, tmp_path / "notes.txt", "-o", new],
            "notes.txt is read as a list of images, and",
        ),
        (["compress", run, image, "-o", file], "exists already"),
        (
            ["compress", run, image, "-o", tmp_path / "x.hvr"],
            "must end in .hrv or .hrva, or be a folder that exists",
        ),
        (["compress", run, image, "-o", new, "--bytes", "6"], f"{image} takes"),
        (
            ["compress", run, image, "-o", new, "--bytes", "60", "--lmbda", "1"],
            "a limit of bytes or a lambda",
        ),
        (
            ["compress", run, image, "-o", archive, "--bytes", "60"],
            "say how many instead of how many bytes",
        ),
        (
            ["compress", "mnist", image, "-o", archive],
            "was made by another model or another entropy model",
        ),
        (
            ["decompress", file, "-o", tmp_path / "y.png"],
            "not inside the package: name it with --model",
        ),
        (["decompress", archive, "-o", tmp_path / "y.png"], "was made by tiny (weights"),
        (["decompress", image, "-o", tmp_path / "y.png", *named], "is not a file of codes"),
        (
            ["decompress", tmp_path / "no.hrv", "-o", tmp_path / "y.png", *named],
            "no.hrv': there is no such file",
        ),
        (
            ["decompress", archive, "-o", tmp_path / "d", *named, "--names", "9"],
            "has no image named '9'",
        ),
        (
            ["decompress", file, "-o", tmp_path / "d", *named, "--names", "0"],
            "is no archive (.hrva), whose images",
        ),
        (["inspect", archive, "-o", tmp_path / "s.png"], "draws the levels of one file"),
        (["inspect", archive, *named], "--model is for one file"),
        (["inspect", file, *named, "--verify"], "--verify is for archives"),
        (
            ["compress", run, image, "-o", archive, "--force"],
            "images are appended to it: leave out --force",
        ),
        (["fit-entropy-model", run, "--effort", "0"], "--effort is 0.0; it must be above 0"),
    ):
        assert message in refused(arguments)
    assert not (tmp_path / "y.png").exists()
    assert not (tmp_path / "d").exists()


def test_broken_images_can_be_left_out(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "in")
    (tmp_path / "in" / "1.png").write_bytes(b"none")
    command = ["compress", run, tmp_path / "in", "-o"]
    assert refused([*command, tmp_path / "x.hrva"]).endswith(
        "leave such images out with --on-error skip\n"
    )
    shutil.copytree(tmp_path / "in", tmp_path / "more")
    shutil.copy(images / "0.png", tmp_path / "more" / "0-again.png")
    begun = ["compress", run, tmp_path / "more", "-o", tmp_path / "begun"]
    with patch(
        "hrvqvae.image_files._BATCH_IMAGES", 1
    ):  # so that one is written before the broken one is read
        assert "--on-error skip --force, which writes all files again" in refused(begun)
    do(*begun, "--on-error", "skip", "--force")
    for out in (tmp_path / "y.hrva", tmp_path / "files"):
        code, printed, told = done(*command, out, "--on-error", "skip")
        assert (code, "3 images" in printed, "1.png" in told, "already" in told) == (
            0,
            True,
            True,
            False,
        )
    assert [entry.name for entry in open_archive(tmp_path / "y.hrva").entries] == [
        "0",
        "2",
        "more/0",
    ]
    code, _, told = done(
        "compress", run, tmp_path / "in" / "1.png", "-o", tmp_path / "z.hrva", "--on-error", "skip"
    )
    assert (code, "no image could be read" in told) == (2, True)
    assert not (tmp_path / "z.hrva").exists()


def test_any_name_of_a_file_can_be_archived_and_read_again(
    run: Path, images: Path, tmp_path: Path
) -> None:
    """With a backslash, a colon or a line break; the terminal gets none of their control
    characters.
    """
    for name in ("a\\b", "C:x\x1b[2J", "two\nlines", "x" * 248):
        shutil.copy(images / "0.png", tmp_path / f"{name}.png")
    do("compress", run, tmp_path, "-o", tmp_path / "x.hrva")
    do("compress", run, tmp_path, "-o", tmp_path / "codes")
    code, printed, told = done(
        "decompress", tmp_path / "x.hrva", "-o", tmp_path / "back", "--model", run
    )
    assert (code, "4 images" in printed) == (0, True)
    assert "\x1b" not in printed + told
    files = sorted(path.stem for path in (tmp_path / "back").iterdir())
    assert files == sorted(path.stem for path in (tmp_path / "codes").iterdir())
    assert {"a_b", "C_x_[2J", "two_lines"} < {*files}
    foreign = [
        os.fsdecode(b"\xe8.png"),
        os.fsdecode(b"\xe9.png"),
    ]  # bytes that are not UTF-8 keep names apart
    write_tar(
        tmp_path / "f.tar",
        {name: (images / f"{index}.png").read_bytes() for index, name in enumerate(foreign)},
    )
    do("compress", run, tmp_path / "f.tar", "-o", tmp_path / "f.hrva")
    assert open_archive(tmp_path / "f.hrva").names == ("\\udce8", "\\udce9")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("../../out.png", "/abs/x.png"):
            tar.add(images / "0.png", name)
    do("compress", run, tmp_path / "t.tar", "-o", tmp_path / "deep" / "codes")
    written = {
        path.relative_to(tmp_path / "deep").as_posix()
        for path in (tmp_path / "deep").rglob("*.hrv")
    }
    assert written == {"codes/out.hrv", "codes/abs/x.hrv"}
    assert not (tmp_path / "out.hrv").exists()


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "..\\out"])
def test_an_archive_writes_nowhere_but_where_it_is_told(
    name: str, run: Path, tmp_path: Path
) -> None:
    model = hrvqvae.load(run)
    codes = np.zeros(model.entropy_model.layout((12, 12)).begins[-1], np.int32)
    with appending(tmp_path / "x.hrva", model.entropy_model) as writer:
        writer.append([codes], [(12, 12)], [name], 3)
    arguments = ["decompress", tmp_path / "x.hrva", "-o", tmp_path / "in" / "side", "--model", run]
    assert "names are changed" in done(*arguments)[2]
    assert (
        len(list((tmp_path / "in" / "side").rglob("*.png")))
        == len(list(tmp_path.rglob("*.png")))
        == 1
    )


def test_what_is_damaged_stops_no_other_image(run: Path, images: Path, tmp_path: Path) -> None:
    """A record and a block of an archive, and a file among others: the others are written, and the
    exit code is 2.
    """
    archive = tmp_path / "X.HRVA"
    codes = tmp_path / "codes"
    out = tmp_path / "out"
    shutil.copytree(images / "more", tmp_path / "in" / "more")
    for some in ([images / "0.png"], [images / "1.png", images / "2.png"], [tmp_path / "in"]):
        do("compress", run, *some, "-o", archive)
    entries = open_archive(archive).entries
    assert [entry.name for entry in entries] == ["0", "1", "2", "more/0"]
    content = bytearray(archive.read_bytes())
    arguments = ["decompress", archive, "-o", out, "--model", run, "--force"]
    shown = list[str]()
    for place, told in (
        (entries[2].place, f"{archive}: image 2: its record is damaged; 3 images written"),
        (
            entries[1].place - 1,
            "are damaged, with the images in them; 2 images written",
        ),  # the second block's index
        (entries[3].place - 1, "are damaged, with the images in them; 1 image written"),
    ):
        content[place] ^= 1
        archive.write_bytes(content)
        assert told in refused(arguments)
        code, printed, _ = done("inspect", archive, "--verify")
        assert code == 2
        shown.append(printed)
    assert "2 (image 2): its record is damaged" in shown[0]
    assert "whole\nwrite what is whole into a new archive: hrvqvae salvage" in shown[0]
    code, printed, _ = done("salvage", archive, tmp_path / "new.hrva", "--model", run)
    assert (code, printed.count("left out:")) == (2, 1)
    assert open_archive(tmp_path / "new.hrva").names == ("0",)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {
        "0.png",
        "1.png",
        "more/0.png",
    }
    content[entries[3].place - 1] ^= 1
    archive.write_bytes(content)
    code, printed, _ = done("inspect", archive)
    assert (code, "bytes in 1 block are damaged" in printed) == (2, True)
    do("compress", run, images, "-o", codes)
    (codes / "0.hrv").write_bytes(b"none")
    files = [codes / f"{number}.hrv" for number in range(3)]
    line = refused(["decompress", *files, "-o", out, "--model", run, "--force"])
    assert f"{files[0]}: is not a file of codes" in line
    assert {path.name for path in out.iterdir()} == {"0.png", "1.png", "2.png", "more"}


def test_work_is_cut_by_pixels(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_BATCH_PIXELS", 300)
    monkeypatch.setattr(hrv, "TOGETHER", 300)
    do("compress", run, images, "-o", tmp_path / "x.hrva")
    assert (tmp_path / "x.hrva").read_bytes().count(b"HRVB") == 3
    decoded = list[int]()
    decode = image_files.decode_images
    monkeypatch.setattr(
        image_files, "decode_images", lambda *some: (decoded.append(len(some[1])), decode(*some))[1]
    )
    do("decompress", tmp_path / "x.hrva", "-o", tmp_path / "out", "--model", run)
    assert decoded == [2, 1, 1]


def test_folders_and_what_a_killed_writer_left_are_no_images(
    run: Path, images: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    (mixed / "x.png").mkdir(parents=True)
    for name in ("a.png", f"{TEMPORARY}b.png"):
        shutil.copy(images / "0.png", mixed / name)
    assert "1 image," in do("compress", run, mixed, "-o", tmp_path / "x.hrva")


def test_a_command_that_is_ended_leaves_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)  # nohup ignores one
        monkeypatch.setattr(os, "fsync", lambda _, signum=signum: signal.raise_signal(signum))
        with pytest.raises(SystemExit, match=str(128 + signum)):
            main(["compress", "mnist", str(images / "2.png"), "-o", str(tmp_path / "x.hrv")])
        assert signal.getsignal(signum) == signal.SIG_DFL
    assert not [*tmp_path.iterdir()]


def test_a_strict_terminal_prints_names_that_are_no_text(
    run: Path, images: Path, tmp_path: Path
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict")
    with redirect_stdout(out):
        assert (
            main(
                ["compress", str(run), str(images / "0.png"), "-o", str(tmp_path / "caf\udce9.hrv")]
            )
            == 0
        )
        out.flush()
    assert b"caf\\udce9.hrv" in out.buffer.getvalue()


def test_a_class_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("../victim/photo", "t-shirt/top", "CON", "a")
    drawn = Sampled(torch.zeros(4, 1, 8, 8), names, ())
    monkeypatch.setattr(pictures.Model, "draw", lambda *_, **__: drawn)
    (tmp_path / "victim").mkdir()
    command = [
        "sample",
        "mnist",
        "-n",
        4,
        "-o",
        tmp_path / "sheet.png",
        "--save-dir",
        tmp_path / "each",
    ]
    do(*command)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    files = {
        "each/_._victim_photo-0000.png",
        "each/t-shirt_top-0001.png",
        "each/CON-0002.png",
        "each/a-0003.png",
    }
    assert written == files | {"sheet.png"}
    assert "exists already" in refused(command)
    do(
        "sample",
        "mnist",
        "-n",
        4,
        "-o",
        tmp_path / "all" / "a-0003.png",
        "--save-dir",
        tmp_path / "all",
    )
    assert len([*(tmp_path / "all").iterdir()]) == 5
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "loop" in refused([*command[:5], tmp_path / "loop.png"])
    assert "has images already" in refused([*command[:5], tmp_path / "new.png", *command[6:]])
    assert "is empty; name a file or a folder" in refused([*command[:5], ""])
