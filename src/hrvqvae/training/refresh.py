"""Renewing what lies beside an autoencoder and was made for another state of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hrvqvae import distributed
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.entropy_model import fit_entropy_model
from hrvqvae.checkpoints.folder import RunFolder, locate, prior_folders, progressive_folder
from hrvqvae.checkpoints.stale import stale_parts
from hrvqvae.config.parsing import from_dict
from hrvqvae.training.prior import train_priors
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.trainer import Callback, Say, Trainer

_MARK = ".refreshing"  # in a folder whose renewal has begun and not ended


def refresh(
    run: str | Path, root: str | None = None, *, callbacks: Sequence[Callback] = (), say: Say = print
) -> int | None:  # fmt: skip
    """Train what is stale in a run folder anew, as it was trained before, and fit its entropy model.

    Returns the signal that stopped it, None at the end; called again, it goes on where it stopped. `root` is where the
    data is, if it has moved since.

    Raises:
        InputError: as `Trainer.train` and `fit_entropy_model`.
    """
    locate(run)  # raises where there is no model
    stale = {part.path for part in distributed.on_rank_zero(lambda: stale_parts(run))}
    for levels, folder in [*prior_folders(run).items(), (None, progressive_folder(run))]:
        mark = folder.path / _MARK
        if not (folder.path in stale or mark.is_file()):
            continue
        if folder.config.is_file():
            config = folder.read_config()
        else:  # it was exported
            config = from_dict(storage.read_meta(folder.model)["config"], str(folder.model))
        config = config.with_root(root)
        distributed.on_rank_zero(mark.touch)
        if levels is None:
            task = ProgressiveTask(run, config)
            outcome = Trainer(task, resume=True, renew=True, callbacks=callbacks, say=say).train()
        else:
            of_prior = {levels: config}
            outcome = train_priors(run, of_prior, resume=True, renew=True, callbacks=callbacks, say=say)[levels]
        if outcome.signal is not None:
            return outcome.signal
        distributed.on_rank_zero(mark.unlink)
    if RunFolder(Path(run)).tables in stale:
        distributed.on_rank_zero(lambda: fit_entropy_model(run, root, say=say))
    return None
