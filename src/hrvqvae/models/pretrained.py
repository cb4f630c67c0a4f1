"""The conventions of the model hub, for autoencoders; `checkpoints`, which imports this room, does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from hrvqvae.config import Config
from hrvqvae.config.registry import imported

_ABOVE = "hrvqvae.checkpoints.export:"


class Pretrained:
    """from_pretrained, save_pretrained, push_to_hub.

    Attributes:
        run_config: the configuration that the model was loaded with; None where it was made in another way.
    """

    run_config: Config | None = None

    @classmethod
    def from_pretrained(cls, name: str | Path, beam: int | None = None, **options: Any) -> Self:
        """The autoencoder of a folder, of a model inside the package, or of the hub; in evaluation mode, on the CPU.

        Args:
            name: a path, the name of a model inside the package, or user/name, which the hub is asked for.
            beam: paths that its search keeps at each level when it encodes; None keeps as many as in training.
            options: of the hub: revision, cache_dir, token, local_files_only, force_download.

        Raises:
            InputError: there is none such, it is of another class, it has no linked codebooks for a beam, or the hub
                can't be reached.
        """
        model: Self = imported(f"{_ABOVE}load_autoencoder")(cls, name, beam, **options)
        return model

    def save_pretrained(self, folder: str | Path, *, config: Config | None = None) -> None:
        """Write config.json, model.safetensors and, where there is none, a model card; no priors.

        Args:
            folder: made if it does not exist.
            config: of the run; None takes `run_config`, or the defaults for this model.

        Raises:
            InputError: it is a run folder, or can't be written.
        """
        imported(f"{_ABOVE}save_autoencoder")(self, folder, config)

    def push_to_hub(self, name: str, *, config: Config | None = None, **options: Any) -> str:
        """Put what `save_pretrained` writes on the hub as user/name; -> where it is.

        Args:
            options: private, token, commit_message, branch, create_pr.

        Raises:
            InputError: no token, one that may not write there, or the hub can't be reached.
        """
        where: str = imported(f"{_ABOVE}push_autoencoder")(self, name, config, **options)
        return where
