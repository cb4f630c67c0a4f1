"""Names that lead out of a folder, links, and files that exist, for every command that writes.

A command may refuse a case in a line with exit code 2, or end well. In both cases it must leave as
they were: every file outside its output, every file that existed before, and every input. It must
print nothing that controls a terminal.
"""

import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import parse_lines
from benchmarks.torture.commands import Running
from benchmarks.torture.readers import MODEL, digest
from hrvqvae.checkpoints import storage

NAMES = (
    "../../out",
    "/tmp/hrvqvae-torture-out",
    "a/../../../out",
    "..\\..\\out",
    "C:/out",
    "D:out",
    "a:stream",
    "CON",
    "nul.txt",
    "LPT1",
    ".lock",
    ".writing-1",
    "x" * 250,
    "d/" * 400 + "x",
    "a\x1b[2J\x07",
    "two\nlines",
    "\u202egnp",
    "a ",
    "b.",
    "~/x",
    "$(touch x)",
    "-rf",
    "caf\u00e9",
    "cafe\u0301",
    "CAF\u00c9",
    "same",
    "SAME",
    "same.png/x",
    'a|b?*<>"',
)
"""Names of classes, and of images in zips and tars."""


def _make_zip(work: Path, folder: Path) -> Path:
    content = next((work / "codes").rglob("*.hrv")).read_bytes()
    path = folder / "names.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")  # a name twice
        for name in (*NAMES, NAMES[0]):
            file.writestr(f"{name}.hrv", content)
        link = zipfile.ZipInfo("link.hrv")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "../../outside")
    return path


def _make_run(work: Path, folder: Path) -> Path:
    """Copy the trained run, with other names of the classes of its priors."""
    shutil.copytree(work / "trained", folder / "run")
    for path in (folder / "run" / "priors").rglob("model.safetensors"):
        tensors, meta = storage.read(path)
        if "classes" in meta:
            meta["classes"] = [NAMES[index] for index in range(len(meta["classes"]))]
            storage.write(path, tensors, meta)
    return folder / "run"


_SOURCES: dict[str, Callable[[Path, Path], Path]] = {
    "named_zip": _make_zip,
    "named_run": _make_run,
}
"""By the name in a command: what makes its input, from the work folder, in another folder."""
WRITERS = parse_lines("""
decompress names: decompress {named_zip} -o {out}
decompress over a link: decompress {named_zip} -o {linked} --force
sample names: sample {named_run} -n 6 -o {out}/sheet.png --save-dir {out}/each
reconstruct over a picture: reconstruct {model} {mine} -o {out}/mine.png
reconstruct over its input: reconstruct {model} {mine} -o {mine} --force
reconstruct over a link to its input: reconstruct {model} {mine} -o {link} --force
complete over its input: complete {model} {mine} -n 1 -o {mine} --force
compress over its input: compress {model} {mine} -o {mine} --force
compress over a file: compress {model} {mine} -o {file}
compress to a typo: compress {model} {mine} -o {out}/x.hvr
decompress over a picture: decompress {file} -o {mine}
decompress over its input: decompress {file} -o {file} --force
compress over a zip: compress {model} {mine} -o {zip}
export over a folder: export {work}/trained {out}
""")
"""Words of a command by the name of its case."""


def _list_contents(folder: Path) -> dict[str, str]:
    """Return the content of every file, folder and link below a folder."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = digest(path.read_bytes())
        contents[path.relative_to(folder).as_posix()] = content
    return contents


def _make_places(words: str, work: Path, folder: Path) -> dict[str, Path]:
    """Make the files and folders that a command names, in a folder. Return them by name."""
    out = folder / "inside" / "deep" / "out"
    linked = out.with_name("linked")
    outside = folder / "outside"
    for path in (out, linked, outside):
        path.mkdir(parents=True)
    places = {
        "out": out,
        "linked": linked,
        "mine": out / "mine.png",
        "file": out / "mine.hrv",
        "zip": out / "mine.zip",
        "link": out / "link.png",
    }
    shutil.copy(work / "image" / "grey.png", places["mine"])
    shutil.copy(next((work / "codes").rglob("*.hrv")), places["file"])
    shutil.copy(work / "zips" / "x.zip", places["zip"])
    places["link"].symlink_to(places["mine"])
    (linked / "same.png").symlink_to(outside / "none.png")
    (linked / "two_lines.png").symlink_to(outside / "none.png")
    (linked / "d").symlink_to(outside)
    sources = {name: make(work, folder) for name, make in _SOURCES.items() if name in words}
    return places | sources


def run_case(name: str, work: Path) -> tuple[str, str]:
    """Run a case. Return its fault, "" for none, and what the command printed."""
    elsewhere = Path("/tmp/hrvqvae-torture-out.png")
    with TemporaryDirectory(dir=work) as place:
        folder = Path(place)
        places = _make_places(WRITERS[name], work, folder)
        before = _list_contents(folder)
        words = [word.format(work=work, model=MODEL, **places) for word in WRITERS[name].split()]
        result = Running(words, work, 300).wait()
        after = _list_contents(folder)
    if fault := result.find_fault(may_refuse=True):
        return fault, result.output
    written = [path for path, content in before.items() if after.get(path) != content]
    written += [
        path
        for path in after
        if path not in before
        and not path.startswith("inside/deep/out")
        and not path.endswith(".lock")
    ]
    if elsewhere.exists():
        written.append(str(elsewhere))
    if result.code == 0 and "over" in name.split():
        written.append("an output that existed")
    if written:
        return f"written: {', '.join(written)}", result.output
    controls = any(ord(letter) < 32 and letter != "\n" for letter in result.output)
    return "control characters" if controls else "", result.output
