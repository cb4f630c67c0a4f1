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
    told = "has neither files of codes (.hrv) nor zips of them"
    assert told in refused(["decompress", images, "-o", tmp_path / "none", "--model", run])


def test_a_zip_is_a_folder_of_files(run: Path, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    do("compress", run, images, "-o", path)
    do("compress", run, images, "-o", tmp_path / "files")
    assert dict(read_zip(path)) == folder_of(tmp_path / "files")
    printed = do("inspect", path)
    assert f"{path}: 4 images, " in printed
    assert "sizes: 7x30, 12x12" in printed
    assert "overwrite it with --force" in refused(["compress", run, images, "-o", path])
    do("compress", run, images / "0.png", "-o", path, "--force")
    assert [name for name, _ in read_zip(path)] == ["0.hrv"]

    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in folder_of(tmp_path / "files").items():
            packed.writestr(name, content)
    named = ["--model", run, "--names", "2", "2"]
    do("decompress", tmp_path / "packed.zip", "-o", tmp_path / "back", *named)
    assert [file.name for file in (tmp_path / "back").iterdir()] == ["2.png"]
    model = hrvqvae.load(run)
    (expected,) = model.decompress(model.compress(pixels(images / "2.png")[None]))
    assert torch.equal(pixels(tmp_path / "back" / "2.png"), (expected * 255).round().byte())


def test_names_keep_their_endings_where_they_must(run: Path, tmp_path: Path) -> None:
    for name in ("0.png", "0.jpg", "1.png"):
        write_picture(tmp_path / "in" / name, 0, (12, 12), "L")
    do("compress", run, tmp_path / "in", "-o", tmp_path / "out")
    assert {*folder_of(tmp_path / "out")} == {"0.png.hrv", "0.jpg.hrv", "1.hrv"}


def test_an_interrupted_call_goes_on(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["compress", run, images, "-o", out]
    do("compress", run, images, "-o", tmp_path / "whole")
    monkeypatch.setattr(image_files, "_BATCH_IMAGES", 1)
    write = image_files.write_output

    def interrupt(path: Path, content: bytes) -> None:
        if path.name == "2.hrv":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(image_files, "write_output", interrupt)
        code, _, told = done(*command)
        assert (code, f"{out} has 2 of 4 files; the same command goes on" in told) == (130, True)
    kept = (out / "0.hrv").stat()

    # nothing is mixed
    for different in (
        [*command, "--levels", "2"],
        ["compress", "mnist", *command[2:]],
        ["compress", run, images / "0.png", "-o", out],
    ):
        assert "holds files of an interrupted call" in refused(different)
    code, printed, told = done(*command)
    assert (code, "2 images, " in printed) == (0, True)
    assert f"{out} has 2 of 4 files already" in told
    assert (out / "0.hrv").stat() == kept, "it is not written again"
    assert folder_of(out) == folder_of(tmp_path / "whole"), "no mark is left"
    assert "exists already" in refused(command)

    # after the last file, but before the end
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", Mock(side_effect=KeyboardInterrupt))
        assert done("compress", run, images, "-o", tmp_path / "late")[0] == 130
    code, _, told = done("compress", run, images, "-o", tmp_path / "late")
    assert (code, "has 4 of 4 files already" in told) == (0, True)
    do(*command, "--levels", "1", "--force")
    assert folder_of(out) != folder_of(tmp_path / "whole")


def test_the_shipped_model_is_found_by_what_it_wrote(images: Path, tmp_path: Path) -> None:
    for name in ("x.hrv", "x.zip"):
        do("compress", "mnist", images / "0.png", "-o", tmp_path / name)
        do("decompress", tmp_path / name, "-o", tmp_path / f"{name}.png")
    assert torch.equal(pixels(tmp_path / "x.hrv.png"), pixels(tmp_path / "x.zip.png"))


def test_what_can_not_be_done(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hrvqvae.utils.progress.SAY_AFTER_SECONDS", 600
    )  # one line, however slow the machine is
    file = tmp_path / "x.hrv"
    new = tmp_path / "new.hrv"
    archive = tmp_path / "x.zip"
    old = tmp_path / "x.hrva"
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
            "must end in .hrv or .zip, or be a folder that exists",
        ),
        (["compress", run, image, "-o", new, "--bytes", "6"], f"{image} takes"),
        (
            ["compress", run, image, "-o", new, "--bytes", "60", "--lmbda", "1"],
            "a limit of bytes, or a lambda and an effort",
        ),
        (
            ["decompress", file, "-o", tmp_path / "y.png"],
            "not inside the package: name it with --model",
        ),
        (["decompress", archive, "-o", tmp_path / "y.png"], "x.zip: 0.hrv was made by a model"),
        (["decompress", old, "-o", tmp_path / "y.png"], "hrvqvae 1.0.0 reads X.hrva"),
        (["compress", run, image, "-o", old], "archives are zips now (X.zip)"),
        (["compress", run, old, "-o", new], "archives are zips now (X.zip)"),
        (["inspect", old], "archives are zips now (X.zip)"),
        (["decompress", image, "-o", tmp_path / "y.png", *named], "is not a file of codes"),
        (
            ["decompress", tmp_path / "no.hrv", "-o", tmp_path / "y.png", *named],
            "no.hrv': there is no such file",
        ),
        (
            ["decompress", archive, "-o", tmp_path / "d", *named, "--names", "9"],
            "no file of codes is named '9'",
        ),
        (["inspect", archive, "-o", tmp_path / "s.png"], "-o and --model are for one file"),
        (["inspect", archive, *named], "-o and --model are for one file"),
        (["fit-entropy-model", run, "--effort", "0"], "--effort is 0.0; it must be above 0"),
    ):
        assert message in refused(arguments)
    assert not (tmp_path / "y.png").exists()
    assert not (tmp_path / "d").exists()


def test_broken_images_can_be_left_out(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images, tmp_path / "in")
    (tmp_path / "in" / "2.png").write_bytes(b"none")
    monkeypatch.setattr(image_files, "_BATCH_IMAGES", 1)  # one is written before the broken one
    for out in (tmp_path / "y.zip", tmp_path / "files"):
        command = ["compress", run, tmp_path / "in", "-o", out]
        assert refused(command).endswith("leave such images out with --on-error skip\n")
        code, printed, told = done(*command, "--on-error", "skip")
        goes_on = out.name == "files"
        assert (code, ("2 images" if goes_on else "3 images") in printed) == (0, True)
        assert ("2.png" in told, "files already" in told) == (True, goes_on)
    names = ["0.hrv", "1.hrv", "more/0.hrv"]
    assert [name for name, _ in read_zip(tmp_path / "y.zip")] == names
    assert sorted(folder_of(tmp_path / "files")) == names
    broken = ["compress", run, tmp_path / "in" / "2.png", "-o", tmp_path / "z.zip"]
    code, _, told = done(*broken, "--on-error", "skip")
    assert (code, "no image could be read" in told) == (2, True)
    assert not (tmp_path / "z.zip").exists()


def test_any_name_of_a_file_can_be_zipped_and_read_again(
    run: Path, images: Path, tmp_path: Path
) -> None:
    """With a backslash, a colon or a line break; the terminal gets none of their control
    characters.
    """
    for name in ("a\\b", "C:x\x1b[2J", "two\nlines", "x" * 248):
        shutil.copy(images / "0.png", tmp_path / f"{name}.png")
    do("compress", run, tmp_path, "-o", tmp_path / "x.zip")
    do("compress", run, tmp_path, "-o", tmp_path / "codes")
    code, printed, told = done(
        "decompress", tmp_path / "x.zip", "-o", tmp_path / "back", "--model", run
    )
    assert (code, "4 images" in printed) == (0, True)
    assert "\x1b" not in printed + told
    files = sorted(path.stem for path in (tmp_path / "back").iterdir())
    assert files == sorted(path.stem for path in (tmp_path / "codes").iterdir())
    assert {"a_b", "C_x_[2J", "two_lines"} < {*files}
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("../../out.png", "/abs/x.png"):
            tar.add(images / "0.png", name)
    do("compress", run, tmp_path / "t.tar", "-o", tmp_path / "deep" / "codes")
    assert {*folder_of(tmp_path / "deep")} == {"codes/out.hrv", "codes/abs/x.hrv"}
    assert not (tmp_path / "out.hrv").exists()


@pytest.mark.parametrize(
    "names", [["../out"], ["/out"], ["a/../../out"], ["..\\out"], ["C:/out"], ["x", "X", "x"]]
)
def test_a_zip_writes_nowhere_but_where_it_is_told(
    names: list[str], run: Path, tmp_path: Path
) -> None:
    (content,) = hrvqvae.load(run).compress(torch.zeros(1, 1, 12, 12))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice
        for name in names:
            opened.writestr(f"{name}.hrv", content)
        link = zipfile.ZipInfo("link.hrv")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "../../out.png")
    out = tmp_path / "in" / "side"
    code, _, told = done("decompress", tmp_path / "x.zip", "-o", out, "--model", run)
    assert code == 2, "of the link"
    assert "names are changed" in told
    assert "link.hrv is not a file of codes" in told
    written = [path for path in tmp_path.rglob("*") if path.suffix == ".png"]
    assert len(written) == len(names)
    assert all(path.is_relative_to(out) and not path.is_symlink() for path in written)


def test_what_is_damaged_stops_no_other_image(run: Path, images: Path, tmp_path: Path) -> None:
    """An entry or the end of a zip, and a file among others: the others are written, and the exit
    code is 2.
    """
    path = tmp_path / "X.ZIP"
    out = tmp_path / "out"
    do("compress", run, images, "-o", path)
    content = path.read_bytes()
    entry = dict(read_zip(path))["1.hrv"]
    assert entry is not None
    flipped = bytearray(content)
    flipped[content.index(entry) + len(entry) - 1] ^= 1
    command = ["decompress", path, "-o", out, "--model", run, "--force"]
    for damaged, line, names in (
        (bytes(flipped), f"{path}: 1.hrv is damaged; 3 images written", {"0", "2", "more/0"}),
        (
            content[: content.index(b"PK\1\2")],
            f"{path}: the directory at its end is damaged; 4 images written",
            {"0", "1", "2", "more/0"},
        ),
    ):
        path.write_bytes(damaged)
        assert line in refused(command)
        assert {*folder_of(out)} == {f"{name}.png" for name in names}
        code, printed, _ = done("inspect", path)
        assert code == 2
        assert f"{len(names)} images" in printed
        assert "damaged: " in printed
        shutil.rmtree(out)

    codes = tmp_path / "codes"
    do("compress", run, images, "-o", codes)
    (codes / "0.hrv").write_bytes(b"none")
    line = refused(["decompress", codes, "-o", out, "--model", run])
    assert f"{codes / '0.hrv'} is not a file of codes" in line
    assert {*folder_of(out)} == {"1.png", "2.png", "more/0.png"}


def test_work_is_cut_by_pixels(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_BATCH_PIXELS", 300)
    monkeypatch.setattr(hrv, "TOGETHER", 300)
    compress = Mock(wraps=hrvqvae.load(run).compress)
    monkeypatch.setattr(hrvqvae.model.Model, "compress", compress)
    do("compress", run, images, "-o", tmp_path / "x.zip")
    assert [len(call.args[0]) for call in compress.call_args_list] == [2, 1, 1]
    decode = Mock(wraps=image_files.decode_images)
    monkeypatch.setattr(image_files, "decode_images", decode)
    do("decompress", tmp_path / "x.zip", "-o", tmp_path / "out", "--model", run)
    assert [len(call.args[1]) for call in decode.call_args_list] == [2, 1, 1]


def test_folders_and_what_a_killed_writer_left_are_no_images(
    run: Path, images: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    (mixed / "x.png").mkdir(parents=True)
    for name in ("a.png", f"{TEMPORARY}b.png"):
        shutil.copy(images / "0.png", mixed / name)
    assert "1 image," in do("compress", run, mixed, "-o", tmp_path / "x.zip")


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
    classes = ("../victim/photo", "t-shirt/top", "CON", "a")
    drawn = Sampled(torch.zeros(4, 1, 8, 8), classes, ())
    priors = SimpleNamespace(classes=classes)
    monkeypatch.setattr(pictures.Model, "load_priors", lambda *_: priors)
    monkeypatch.setattr(pictures.Model, "draw_labels", lambda *_: torch.arange(4))
    monkeypatch.setattr(
        pictures.Model, "draw_batches", lambda _, missing, **__: [drawn] if missing else []
    )
    (tmp_path / "victim").mkdir()
    draw = ["sample", "mnist", "-n", 4, "-o"]
    command = [*draw, tmp_path / "sheet.png", "--save-dir", tmp_path / "each"]
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
    do(*draw, tmp_path / "all" / "a-0003.png", "--save-dir", tmp_path / "all")
    assert len([*(tmp_path / "all").glob("*.png")]) == 5
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "loop" in refused([*draw, tmp_path / "loop.png"])
    different = [*draw, tmp_path / "new.png", *command[6:], "--seed", 1]
    assert "has other images already" in refused(different)
    assert "is empty; name a file or a folder" in refused([*draw, ""])
