"""Models on the Hugging Face hub, by the library huggingface_hub."""

import re
import tempfile
from pathlib import Path
from typing import Any

from hrvqvae.checkpoints.export import export

_FILES = ["*.safetensors", "*.json", "*.md", "*.hrvt"]


def is_hub_name(name: str | Path) -> bool:
    """Return whether a name has the form user/name, as models on the hub and some paths have."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name), re.ASCII) is not None


def fetch(name: str, **options: Any) -> Path:
    """Return the folder of the model user/name, from the hub or its cache on this machine.

    `options` go to `huggingface_hub.snapshot_download`: revision, token, cache_dir, ...
    """
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=_FILES, library_name="hrvqvae", **options))


def push(
    run: str | Path,
    name: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    **options: Any,
) -> str:
    """Export a run, upload it to the hub as user/name, and return the address of the commit.

    `options` go to `huggingface_hub.HfApi.upload_folder`: token, revision, commit_message, ...
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="hrvqvae", token=options.get("token"))
    api.create_repo(name, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model"
        export(run, exported, name=name, license=license)
        # Priors and decoders of an earlier model do not fit this one: they are deleted.
        commit = api.upload_folder(
            repo_id=name, folder_path=exported, delete_patterns=_FILES, **options
        )
    return str(commit.pr_url or commit.commit_url)
