"""Begin from what is trained: the weights of a run, or of a model inside the package, in place of drawn ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import locate, prior_folder
from hrvqvae.checkpoints.loading import load_with_config, load_with_digest, read_prior
from hrvqvae.config import Config, Levels, level_names
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.blocks import ProgressiveDecoder
from hrvqvae.priors.base import Prior, build_prior
from hrvqvae.utils.errors import InputError


def init_model_from(model: Autoencoder, init_from: str) -> str:
    """Give an autoencoder the weights of a trained one, codebooks with their counts; -> a line that says so.

    Args:
        init_from: a run folder, a weights file, or the name of a model inside the package.

    Raises:
        InputError: there is no such model, or one of other shapes; the first that does not fit is named.
    """
    source, config, _ = load_with_digest(init_from)
    _fill(model, source.state_dict(), init_from)
    return f"beginning with the weights of {init_from}, trained on {config.data.dataset}"


def init_prior_from(prior: Prior, config: Config, levels: Levels, classes: Sequence[str], init_from: str) -> str:
    """Give a prior the weights of a trained model's prior of the same levels; -> a line that says so.

    Where the classes differ, what belongs to a class begins anew, and the rest is kept. Where only one of the two knows
    the codes without a class, what belongs to "no class" is left out, or begins as the mean of the classes.

    Args:
        config: of the prior that begins.
        levels: that it covers.
        classes: names of the classes that it is to know.

    Raises:
        InputError: there is no such model, or its prior of these levels is of other shapes.
    """
    path = locate(init_from)
    weights, about = read_prior(prior_folder(path.parent, *levels).model, storage.digest(path), init_from, levels)
    of_classes, same, own = _of_classes(config, levels), list(classes) == about["classes"], prior.state_dict()
    anew = [] if same else of_classes
    for name in of_classes if same else []:
        if name in weights and weights[name].shape != own[name].shape:
            weights[name] = _resized(weights[name], prior.level.labels)
    _fill(prior, weights, f"{init_from}, {level_names(levels)},", anew)
    told = f"beginning with the prior of {level_names(levels)} of {init_from}"
    return told + (f", {', '.join(sorted(anew))} anew: other classes" if anew else "")


def _resized(rows: Tensor, labels: int) -> Tensor:
    """A tensor with a row a class, and one for "no class" or none: further rows are the mean of the classes."""
    return torch.cat([rows, rows.mean(0).expand(max(0, labels - len(rows)), *rows.shape[1:])])[:labels]


def init_progressive_decoder_from(decoder: ProgressiveDecoder, init_from: str) -> str:
    """Give a progressive decoder the weights of that of a trained model; -> a line that says so.

    Raises:
        InputError: there is no such model, it has no progressive decoder, or one of other shapes.
    """
    source = getattr(load_with_config(init_from)[0], "progressive_decoder", None)
    if source is None:
        raise InputError(f"{init_from} has no progressive decoder; train it: hrvqvae train-progressive {init_from}")
    _fill(decoder, source.state_dict(), f"the progressive decoder of {init_from}")
    return f"beginning with the progressive decoder of {init_from}"


def _of_classes(config: Config, levels: Levels) -> list[str]:
    """Names of a prior's tensors whose shapes depend on the number of classes."""
    with torch.device("meta"):
        one, two = (build_prior(config, levels, count).state_dict() for count in (1, 2))
    return [name for name, tensor in two.items() if tensor.shape != one[name].shape]


def _fill(model: nn.Module, weights: Mapping[str, Tensor], source: str, anew: Collection[str] = ()) -> None:
    """Copy weights into a model but those named `anew`. Raises InputError at the first that does not fit."""
    own = model.state_dict()
    given = {name: tensor for name, tensor in weights.items() if name not in anew}
    for name in sorted({*own, *given} - set(anew)):
        here, there = (str(list(one[name].shape)) if name in one else "absent" for one in (own, given))
        if here != there:
            raise InputError(f"{source} does not fit: {name} is {there} there, {here} here; choose the same shapes")
    model.load_state_dict(given, strict=False)
