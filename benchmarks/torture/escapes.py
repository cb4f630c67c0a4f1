"""Names that lead out of a folder, links, and files that exist, for every command that writes: what
must stay as it is.

A case is refused in a line with exit code 2, or ends well; then every file outside the output,
every file that was there before and every input is as it was, and nothing that the command printed
can control a terminal.
"""

import io
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.torture.commands import Running
from benchmarks.torture.readers import MODEL, digest

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
"""Of images in zips, shards and tars, and of classes."""


def _zip(ground: Path, folder: Path) -> Path:
    content = next((ground / "codes").rglob("*.hrv")).read_bytes()
    path = folder / "names.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")  # a name twice
        for name in (*NAMES, NAMES[0]):
            file.writestr(f"{name}.hrv", content)
        link = zipfile.ZipInfo("link.hrv")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "../../outside")
    return path


def _tar(ground: Path, folder: Path) -> Path:
    content = (ground / "image" / "grey.png").read_bytes()
    path = folder / "names.tar"
    with tarfile.open(path, "w") as tar:
        for name in NAMES:
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _shards(ground: Path, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(ground / "shards", folder / "shards")
    for path in sorted((folder / "shards").glob("[!.]*.parquet")):
        table = pq.read_table(path)
        keys = [NAMES[row % len(NAMES)] for row in range(len(table))]
        keys[len(NAMES) :] = [name + path.stem for name in keys[len(NAMES) :]]
        place = table.schema.get_field_index("key")
        pq.write_table(table.set_column(place, table.schema.field("key"), pa.array(keys)), path)
    return folder / "shards"


def _classes(ground: Path, folder: Path) -> Path:
    """A run whose priors have such classes."""
    from hrvqvae.checkpoints import storage

    shutil.copytree(ground / "trained", folder / "run")
    for path in (folder / "run" / "priors").rglob("model.safetensors"):
        tensors, meta = storage.read(path)
        if "classes" in meta:
            meta["classes"] = [NAMES[index] for index in range(len(meta["classes"]))]
            storage.write(path, tensors, meta)
    return folder / "run"


SOURCES: dict[str, Callable[[Path, Path], Path]] = {
    "named_zip": _zip,
    "named_tar": _tar,
    "named_shards": _shards,
    "named_run": _classes,
}
"""What a command reads, made in a folder."""
_WRITERS = """
decompress names: decompress {named_zip} -o {out}
decompress over a link: decompress {named_zip} -o {linked} --force
compress names to files: compress {model} {named_tar} -o {out}
compress names to a zip: compress {model} {named_tar} -o {out}/x.zip
detokenize names: detokenize {named_shards} {out}
detokenize over a link: detokenize {named_shards} {linked} --force
sample names: sample {named_run} -n 6 -o {out}/sheet.png --save-dir {out}/each
reconstruct over a picture: reconstruct {model} {mine} -o {out}/mine.png
reconstruct over its input: reconstruct {model} {mine} -o {mine} --force
reconstruct over a link to its input: reconstruct {model} {mine} -o {link} --force
complete over its input: complete {model} {mine} -n 1 -o {mine} --force
inspect over a picture: inspect {file} -o {mine}
compress over its input: compress {model} {mine} -o {mine} --force
compress over a file: compress {model} {mine} -o {file}
compress to a typo: compress {model} {mine} -o {out}/x.hvr
decompress over a picture: decompress {file} -o {mine}
decompress over its input: decompress {file} -o {file} --force
compress over a zip: compress {model} {mine} -o {zip}
export over a folder: export {ground}/trained {out}
tokenize into a file: tokenize {model} {ground}/pictures {mine} --workers 0
"""
WRITERS = dict(line.split(": ") for line in _WRITERS.strip().splitlines())
"""The words of a command."""


def _tree(folder: Path) -> dict[str, str]:
    """Every file, folder and link below a folder, with what it holds."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = digest(path.read_bytes())
        contents[path.relative_to(folder).as_posix()] = content
    return contents


def wrong(name: str, ground: Path, folder: Path) -> tuple[str, str]:
    """Return what is wrong in a case, "" for nothing, and what the command told."""
    words = WRITERS[name]
    place = {key: folder / "inside" / "deep" / key for key in ("out", "linked")}
    place["outside"] = folder / "outside"
    for path in place.values():
        path.mkdir(parents=True)
    place |= {
        "mine": place["out"] / "mine.png",
        "file": place["out"] / "mine.hrv",
        "zip": place["out"] / "mine.zip",
    }
    place["link"] = place["out"] / "link.png"
    shutil.copy(ground / "image" / "grey.png", place["mine"])
    shutil.copy(next((ground / "codes").rglob("*.hrv")), place["file"])
    shutil.copy(ground / "zips" / "x.zip", place["zip"])
    place["link"].symlink_to(place["mine"])
    for link in ("same.png", "d", "two_lines.png"):
        (place["linked"] / link).symlink_to(
            place["outside"] / ("none.png" if link.endswith("g") else "")
        )
    place |= {key: make(ground, folder) for key, make in SOURCES.items() if key in words}
    before = _tree(folder)
    elsewhere = Path("/tmp/hrvqvae-torture-out.png")
    split = [word.format(ground=ground, model=MODEL, **place) for word in words.split()]
    ended = Running(split, folder.parent, 300).wait()
    after = _tree(folder)
    changed = [path for path, content in before.items() if after.get(path) != content]
    new = [path for path in after if path not in before and not path.startswith("inside/deep/out")]
    new = [path for path in new if not path.endswith((".lock", ".lock-holder"))]
    fault = ended.fault(refused=True)
    if not fault and (
        changed or new or elsewhere.exists() or (ended.code == 0 and "over" in name.split())
    ):
        fault = f"written: {', '.join([*changed, *new]) or 'outside'}"
    if not fault and any(ord(letter) < 32 and letter != "\n" for letter in ended.told):
        fault = "control characters"
    return fault, ended.told
