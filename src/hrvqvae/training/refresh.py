"""Renew the artifacts of a run that were made for another state of its autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

from hrvqvae import distributed
from hrvqvae.checkpoints.run import Run
from hrvqvae.training.prior import train_priors
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.trainer import Callback, Say, Trainer

_MARK = ".refreshing"  # in a folder while it is renewed


def refresh(
    name: str, root: str | None = None, *, callbacks: Sequence[Callback] = (), say: Say = print
) -> int | None:  # fmt: skip
    """Train the stale networks of a run as they were trained before, and fit its entropy model.

    Args:
        root: where the data is, if it has moved.

    Returns:
        The signal that stopped the training, or None at the end. Another call resumes.

    Raises:
        InputError: as `Trainer.train` and `EntropyModelArtifact.fit`.
    """
    run = Run(name)
    stale = distributed.on_rank_zero(lambda: {artifact.path for artifact in run.stale_artifacts()})
    for network in (*run.priors.values(), run.progressive):
        mark = network.path / _MARK
        if not (network.path in stale or mark.is_file()):
            continue
        config = network.config.with_root(root)
        distributed.on_rank_zero(mark.touch)
        if network.levels is None:
            task = ProgressiveTask(name, config)
            outcome = Trainer(task, resume=True, renew=True, callbacks=callbacks, say=say).train()
        else:
            configs = {network.levels: config}
            outcomes = train_priors(name, configs, resume=True, renew=True, callbacks=callbacks, say=say)
            outcome = outcomes[network.levels]
        if outcome.signal is not None:
            return outcome.signal
        distributed.on_rank_zero(mark.unlink)
    if run.entropy_model.path in stale:
        distributed.on_rank_zero(lambda: run.entropy_model.fit(root, say=say))
    return None
