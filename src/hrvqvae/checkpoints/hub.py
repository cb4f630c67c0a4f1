"""Download models from the Hugging Face hub, and upload models to it, with the library
huggingface_hub.
"""

import importlib
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrvqvae.checkpoints.folder import RunFolder, is_hub_name
from hrvqvae.data.fetch import quiet_network
from hrvqvae.utils.errors import InputError, one_line
from hrvqvae.utils.outputs import create_folder

# files that are uploaded or downloaded; none holds code
_PATTERNS = ("*.safetensors", "*.json", "*.md", "*.hrvt")
_ARTIFACTS = ("priors/", "prefixes/", "generation/", "tables.hrvt", "sampling.json")
_HTTP_CLIENTS = ("requests", "httpx", "httpx2", "httpcore", "httpcore2")


def fetch(
    name: str, *, revision: str | None = None, into: Path | None = None, **options: Any
) -> Path:
    """Return the folder of the model user/name, from the hub or its cache on this machine.

    Args:
        revision: Branch, tag or commit (default: the newest).
        into: New folder to download to (default: the library's cache).
        options: cache_dir, token, local_files_only, force_download of `snapshot_download`.

    Raises:
        InputError: The model can't be downloaded, or `into` exists.
    """
    if into is not None:
        with create_folder(into) as partial:
            fetch(name, revision=revision, local_dir=partial, **options)
            # the library's records of the download
            shutil.rmtree(partial / ".cache", ignore_errors=True)
        return into
    with _library(name, revision) as hub:
        options |= {"allow_patterns": [*_PATTERNS], "library_name": "hrvqvae", "revision": revision}
        folder = Path(hub.snapshot_download(name, **options))
    if not RunFolder(folder).model.is_file():
        raise InputError(f"{name} of the hub is no model of hrvqvae (it has no model.safetensors)")
    return folder


def push(
    folder: Path,
    name: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Model of hrvqvae",
    branch: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder that `export` wrote, and return its address. Raises InputError if it can't be
    uploaded.

    Args:
        private: Whether a new repository is private (default: as the hub's account says).
        token: Token of the hub (default: that of `hf auth login`).
        branch: Branch to commit to (default: main).
        create_pr: Open a pull request in place of a commit.
    """
    with _library(name, branch) as hub:
        api = hub.HfApi(token=token, library_name="hrvqvae")
        api.create_repo(name, private=private, exist_ok=True)
        files = {
            path.relative_to(folder).as_posix(): path
            for pattern in _PATTERNS
            for path in folder.rglob(pattern)
        }
        changes = [hub.CommitOperationAdd(file, path) for file, path in sorted(files.items())]

        # Artifacts of an earlier model do not fit this one.
        for file in api.list_repo_files(name, revision=branch):
            if file not in files and file.startswith(_ARTIFACTS):
                changes.append(hub.CommitOperationDelete(file))

        # A single commit changes all files or none.
        commit = api.create_commit(
            name, changes, commit_message=commit_message, revision=branch, create_pr=create_pr
        )
    return str(commit.pr_url or commit.commit_url)


@contextmanager
def _library(name: str, revision: str | None) -> Iterator[Any]:
    """Import huggingface_hub without its progress bars and warnings; turn its errors into
    InputErrors of one line.
    """
    if not is_hub_name(name):
        raise InputError(f"{name!r} is no name of the hub; it must be user/name")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError("the hub needs huggingface_hub: pip install 'hrvqvae[hub]'")
    hub = importlib.import_module("huggingface_hub")
    messages = {
        "RevisionNotFoundError": f"{name} has no revision {revision!r} on the hub",
        "RepositoryNotFoundError": (
            f"the hub has no model {name}, or it is private; to use it, log in: hf auth login"
        ),
        "LocalEntryNotFoundError": f"{name} is not on this machine, and the hub can't be reached",
        "HFValidationError": f"{name!r} is no name of the hub; it must be user/name",
        # last: a base class of types above
        "HfHubHTTPError": f"the hub refuses {name}; log in: hf auth login",
    }
    try:
        with quiet_network():
            yield hub
    except Exception as error:
        fitting = (
            message
            for kind, message in messages.items()
            if isinstance(error, getattr(hub.errors, kind))
        )
        message = next(fitting, "")
        if not message:
            # Versions of huggingface_hub use different HTTP clients.
            library = type(error).__module__.partition(".")[0]
            if type(error) is ValueError:  # a model card that the hub does not take
                raise InputError(f"{name}: {one_line(error)}") from error
            if not isinstance(error, (OSError, RuntimeError)) and library not in _HTTP_CLIENTS:
                raise
            message = f"the hub can't be reached for {name}"

        # Errors of these two types have their reason in the cause.
        cause: BaseException = error
        while cause.__cause__ is not None and isinstance(cause, (FileNotFoundError, RuntimeError)):
            cause = cause.__cause__

        # its first sentence, in one line
        text = " ".join(str(cause).split())
        reason = text.split(". ")[0][:160] or type(cause).__name__
        raise InputError(f"{message} ({reason})") from error
