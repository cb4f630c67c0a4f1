"""Files of codes on the command line: tables, compress, inspect, decompress, archives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hrvqvae
from hrvqvae.checkpoints import image_files
from hrvqvae.cli import main
from hrvqvae.compression.archive import appending, open_archive
from hrvqvae.data.images import read_image
from tests.cli.helpers import refused
from tests.conftest import write_picture
from tests.trained_run import tiny_run_with_priors


@pytest.fixture(scope="module")
def run(mnist_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, without priors, with tables that the command made."""
    folder = tmp_path_factory.mktemp("files") / "run"
    shutil.copytree(tiny_run_with_priors(mnist_root), folder, ignore=shutil.ignore_patterns("level-*"))
    assert main(["fit-entropy-model", str(folder), "--device", "cpu", "--effort", "0.2"]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate(((12, 12), (12, 12), (30, 7))):
        write_picture(folder / f"{number}.png", number, size, "L")
    (folder / "more").mkdir()
    write_picture(folder / "more" / "0.png", 9, (12, 12), "L")
    return folder


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_image(path, 1))


def test_one_file_there_and_back(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "x.hrv", tmp_path / "y.png"
    assert main(["compress", str(run), str(images / "2.png"), "-o", str(file), "--device", "cpu"]) == 0
    assert f"1 image, {file.stat().st_size} bytes" in capsys.readouterr().out
    assert main(["inspect", str(file), "--model", str(run), "-o", str(tmp_path / "sheet.png")]) == 0
    printed = capsys.readouterr().out
    assert "7x30 pixels (height, width)" in printed
    assert printed.splitlines()[-4].split()[:2] == ["level", "3"]
    assert printed.splitlines()[-4].split()[-1] == str(file.stat().st_size)
    assert "\nwhole\n" in printed
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 30
    assert main(["decompress", str(file), "-o", str(out), "--model", str(run), "--levels", "2"]) == 0
    model = hrvqvae.load(run)
    expected = model.decode(model.encode(pixels(images / "2.png")[None]), levels=2, size=(7, 30))[0]
    assert torch.equal(pixels(out), (expected * 255).round().byte())
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["decompress", str(file), "-o", str(out), "--model", str(run), "--force"]) == 0
    assert "level 3 is cut short or damaged; decoded from 2 whole levels" in capsys.readouterr().err
    assert torch.equal(pixels(out), (expected * 255).round().byte())
    assert main(["inspect", str(file), "--model", str(run)]) == 0
    assert "level 3 is cut short or damaged" in capsys.readouterr().out


def test_a_folder_gets_a_file_for_each_image(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", str(run), str(images), "-o", str(tmp_path / "codes"), "--levels", "1"]) == 0
    files = sorted(path.relative_to(tmp_path / "codes").as_posix() for path in (tmp_path / "codes").rglob("*.hrv"))
    assert files == ["0.hrv", "1.hrv", "2.hrv", "more/0.hrv"]
    again = ["compress", str(run), str(images), "-o", str(tmp_path / "codes")]
    (tmp_path / "codes" / "0.hrv").unlink()
    assert main([*again, "--levels", "1"]) == 0, "what is there already is what it writes"
    before = (tmp_path / "codes" / "0.hrv").read_bytes()
    (tmp_path / "codes" / "0.hrv").unlink()
    assert "1.hrv exists already; choose another place, or write over it with --force" in refused(again, capsys)
    assert not (tmp_path / "codes" / "0.hrv").exists()
    assert main([*again, "--force"]) == 0
    assert (tmp_path / "codes" / "0.hrv").read_bytes().startswith(before)
    some = [str(tmp_path / "codes" / name) for name in files[:3]]
    assert main(["decompress", *some, "-o", str(tmp_path / "back"), "--model", str(run)]) == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["0.png", "1.png", "2.png"]


def test_an_archive_grows_and_gives_images_by_name(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.hrva"
    assert main(["compress", str(run), str(images / "0.png"), "-o", str(path)]) == 0
    alone = path.read_bytes()
    line = refused(["compress", run, images / "more", images / "2.png", "-o", path], capsys)
    assert "another image named '0'" in line
    assert path.read_bytes() == alone
    for _ in range(2):  # run again, it goes on where it was
        assert main(["compress", str(run), str(images), "-o", str(path)]) == 0
    assert "had 4 of 4 images already" in capsys.readouterr().err
    assert [entry.name for entry in open_archive(path).entries] == ["0", "1", "2", "more/0"]
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"{path}: 4 images, by tiny" in printed
    assert "sizes: 7x30, 12x12" in printed
    back = ["decompress", str(path), "-o", str(tmp_path / "back"), "--model", str(run)]
    assert main([*back, "--names", "2"]) == 0
    assert [one.name for one in (tmp_path / "back").iterdir()] == ["2.png"]
    model = hrvqvae.load(run)
    assert torch.equal(
        pixels(tmp_path / "back" / "2.png"),
        (model.decompress(model.compress(pixels(images / "2.png")[None]))[0] * 255).round().byte(),
    )


def test_the_shipped_model_is_found_by_what_it_wrote(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.hrv"
    assert main(["compress", "mnist", str(images / "0.png"), "-o", str(file)]) == 0
    assert main(["decompress", str(file), "-o", str(tmp_path / "y.png")]) == 0
    assert main(["compress", "mnist", str(images / "0.png"), "-o", str(tmp_path / "x.hrva")]) == 0
    assert main(["decompress", str(tmp_path / "x.hrva"), "-o", str(tmp_path / "z.png")]) == 0
    assert torch.equal(pixels(tmp_path / "y.png"), pixels(tmp_path / "z.png"))


def test_what_can_not_be_done(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, image = tmp_path / "x.hrv", images / "0.png"
    (tmp_path / "none").mkdir()
    main(["compress", str(run), str(image), "-o", str(file)])
    archive = tmp_path / "x.hrva"
    main(["compress", str(run), str(image), "-o", str(archive)])
    odd = tmp_path / "caf\udce9.png"
    shutil.copy(image, odd)
    named = ["--model", run]
    for arguments, message in (
        (["compress", run, images, "-o", tmp_path / "y.hrv"], "takes one image, and there are 4"),
        (["compress", run, image, images / "more" / "0.png", "-o", tmp_path / "d"], "would both be named 0"),
        (["compress", run, odd, "-o", tmp_path / "z.hrva"], "has a name that is not UTF-8"),
        (["compress", run, tmp_path / "none", "-o", tmp_path / "d"], "has no PNG, JPEG or WebP image"),
        (["compress", run, images / "none.png", "-o", file], "there is no such image"),
        (["compress", run, image, "-o", file, "--bytes", "6"], f"{image} takes"),
        (["compress", run, image, "-o", file, "--bytes", "60", "--lmbda", "1"], "max_bytes or a lambda"),
        (["compress", run, image, "-o", archive, "--bytes", "60"], "say how many instead of how many bytes"),
        (["compress", run, image, "-o", file, "--levels", "4"], "levels is 4; this model decodes 1, 2, 3"),
        (["compress", "mnist", image, "-o", archive], "was made by another model or another entropy model"),
        (["decompress", file, "-o", tmp_path / "y.png"], "none inside the package: name it with --model"),
        (["decompress", archive, "-o", tmp_path / "y.png"], "was made by tiny (weights"),
        (["decompress", archive, "-o", tmp_path / "y.png", "--model", "mnist"], "was made by tiny (weights"),
        (["decompress", file, "-o", tmp_path / "y.png", "--model", "mnist"], "was made by another model"),
        (["decompress", image, "-o", tmp_path / "y.png", *named], "is not a file of codes"),
        (["decompress", tmp_path / "no.hrv", "-o", tmp_path / "y.png", *named], "there is no such file"),
        (
            ["decompress", file, file, "-o", tmp_path / "y.png", *named],
            "takes one image, and there are 2; name a folder",
        ),
        (["decompress", archive, "-o", tmp_path / "d", *named, "--names", "9"], "has no image named '9'"),
        (["inspect", archive, "-o", tmp_path / "s.png"], "draws the levels of one file"),
        (["fit-entropy-model", run, "--effort", "0"], "--effort is 0.0; it must be above 0"),
    ):
        assert message in refused(arguments, capsys)
    assert not (tmp_path / "y.png").exists()
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "z.hrva").exists()


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "..\\out"])
def test_an_archive_writes_nowhere_but_where_it_is_told(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = hrvqvae.load(run)
    codes = np.zeros(model.codec.layout((12, 12)).begins[-1], np.int32)
    with appending(tmp_path / "x.hrva", model.codec) as writer:
        writer.append([codes], [(12, 12)], [name], 3)
    arguments = ["decompress", tmp_path / "x.hrva", "-o", tmp_path / "in" / "side", "--model", run]
    assert "a name that leads out of a folder" in refused(arguments, capsys)
    assert not list(tmp_path.rglob("*.png"))


def test_no_image_takes_the_place_of_another(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / folder / "x.hrv" for folder in ("one", "two")]
    for file, image in zip(files, ("0.png", "1.png"), strict=True):
        file.parent.mkdir()
        assert main(["compress", str(run), str(images / image), "-o", str(file), "--device", "cpu"]) == 0
    out = tmp_path / "out"
    assert "two images would be written to" in refused(["decompress", *files, "-o", out, "--model", run], capsys)
    write_picture(out / "x.png", 5, (12, 12), "L")
    original = (out / "x.png").read_bytes()
    again = ["decompress", files[0], "-o", out, "--model", run]
    assert "--force" in refused(again, capsys)
    assert (out / "x.png").read_bytes() == original
    assert main([*map(str, again), "--force"]) == 0
    assert (out / "x.png").read_bytes() != original


def test_what_is_damaged_stops_no_other_image(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record and a block of an archive, and a file among others: the others are written, and the exit code is 2."""
    archive, codes, out = tmp_path / "X.HRVA", tmp_path / "codes", tmp_path / "out"
    shutil.copytree(images / "more", tmp_path / "in" / "more")
    for some in ([images / "0.png"], [images / "1.png", images / "2.png"], [tmp_path / "in"]):
        assert main(["compress", str(run), *map(str, some), "-o", str(archive)]) == 0
    assert [entry.name for entry in open_archive(archive).entries] == ["0", "1", "2", "more/0"]
    content = bytearray(archive.read_bytes())
    content[open_archive(archive).entries[2].place] ^= 1
    archive.write_bytes(content)
    arguments = ["decompress", archive, "-o", out, "--model", run]
    assert f"{archive}: image 2: its record is damaged; 3 images written" in refused(arguments, capsys)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == ["0.png", "1.png", "more/0.png"]
    content[open_archive(archive).entries[1].place - 1] ^= 1  # the index of the second block
    archive.write_bytes(content)
    assert "are damaged, with the images in them; 2 images written" in refused([*arguments, "--force"], capsys)
    last = bytearray(content)
    last[open_archive(archive).entries[-1].place - 1] ^= 1
    archive.write_bytes(last)
    assert "are damaged, with the images in them; 1 image written" in refused([*arguments, "--force"], capsys)
    archive.write_bytes(content)
    assert main(["inspect", str(archive)]) == 0
    assert "bytes between whole blocks are damaged" in capsys.readouterr().out
    assert main(["compress", str(run), str(images), "-o", str(codes)]) == 0
    (codes / "0.hrv").write_bytes(b"none")
    files = [codes / f"{number}.hrv" for number in range(3)]
    arguments = ["decompress", *files, "-o", out, "--model", run, "--force"]
    assert f"{files[0]}: is not a file of codes" in refused(arguments, capsys)
    assert {path.name for path in out.iterdir()} == {"0.png", "1.png", "2.png", "more"}


def test_images_are_worked_on_by_pixels(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 144, 144, 210 and 144 pixels: a block has no more than are admitted, but one image at least."""
    monkeypatch.setattr(image_files, "_PIXELS", 300)
    assert main(["compress", str(run), str(images), "-o", str(tmp_path / "x.hrva")]) == 0
    assert (tmp_path / "x.hrva").read_bytes().count(b"HRVB") == 3
    decoded, decode = list[int](), image_files.decode_images
    monkeypatch.setattr(image_files, "decode_images", lambda *some: (decoded.append(len(some[1])), decode(*some))[1])
    assert main(["decompress", str(tmp_path / "x.hrva"), "-o", str(tmp_path / "out"), "--model", str(run)]) == 0
    assert decoded == [2, 1, 1]
