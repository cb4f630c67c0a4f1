"""Small sets of images in every form in which images are stored, made without the code that reads
them.
"""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ImageCms

from hrvqvae.config import DataConfig
from hrvqvae.data.images import BrokenImageError
from hrvqvae.data.loading import load_images


def broken_image(message):
    return pytest.raises(BrokenImageError, match=message)


def folder_config(folder, **changes):
    fields = {"dataset": "pictures", "size": 16, "channels": 3, "workers": 0, **changes}
    return DataConfig(root=str(folder), **fields)


def loaded(root, split="train", /, **changes):
    """Return the images of a split, not held in memory unless `memory_mb` is given."""
    return load_images(folder_config(Path(str(root)), **{"memory_mb": 0, **changes}), split)


def content(images):
    if images.pixels is not None:
        return images.pixels
    return np.stack([images.decode(index, None) for index in range(len(images))])


def paths_of(images):
    return [Path(images.source.where(int(row))) for row in images.rows]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def swapped_profile():
    """Return a colour profile in which red and blue of sRGB have each other's place."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for before, after in ((b"rXYZ", b"????"), (b"bXYZ", b"rXYZ"), (b"????", b"bXYZ")):
        profile = profile.replace(before, after)
    return profile.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


def write_tar(path, members):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(folder, files):
    for name, content in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def folder_of(folder):
    """Return the content of each file by its path in the folder; not of hidden files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("[!.]*.*"))
    }


def write_parquet(path, images, labels):
    """Write Parquet as the hub does: a struct of bytes and path."""
    structs = [{"bytes": image, "path": None} for image in images]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": pa.array(structs, struct), "label": pa.array(labels)})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)
