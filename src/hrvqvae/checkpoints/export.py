"""What others need of a run, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.card import card_of, kept_card, last_figures
from hrvqvae.checkpoints.folder import RunFolder, prior_folder, progressive_folder
from hrvqvae.checkpoints.loading import folders_of_priors, level_bits, read_prior
from hrvqvae.checkpoints.locating import locate
from hrvqvae.checkpoints.progressive import read_progressive_decoder
from hrvqvae.config import Config, Levels, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import TEMPORARY, write_atomic


def export(run: str | Path, out: Path, *, name: str | None = None, licence: str | None = None) -> list[Path]:
    """Write what others need of a run, and nothing else; -> the files.

    The model, its configuration as config.json too, its priors in half precision, the progressive decoder (but not
    one of another state of the model), and a model card: the one that lies in the run's folder, or else one that is
    written from the configuration and the run's last evaluation. Paths of the data are left out. Written whole or not
    at all.

    Args:
        name: of the model, for its card; None is the name of `out`.
        licence: of the model, for its card.

    Raises:
        InputError: the run has no model, a prior is of another state of it, `out` exists or can't be written.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder")
    source = locate(run)
    weights, meta, digest = storage.read_with_digest(source)
    partial = out.with_name(f"{TEMPORARY}{out.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        storage.write(RunFolder(partial).model, weights, {**meta, "config": without_paths(meta["config"])})
        autoencoder, bits = storage.digest(RunFolder(partial).model), list[float]()
        config, networks = from_dict(meta["config"], str(source)), dict[Levels, str]()
        for levels, folder in folders_of_priors(source.parent, len(config.model.num_symbols)).items():
            if folder.model.is_file():
                weights, about = read_prior(folder.model, digest, run, levels)
                half = {name: one.half() if one.is_floating_point() else one for name, one in weights.items()}
                written = prior_folder(partial, *levels)
                written.path.mkdir(parents=True)
                about |= {"config": without_paths(about["config"]), "autoencoder": autoencoder}
                storage.write(written.model, half, about)
                bits += level_bits(about)
                networks[levels] = from_dict(about["config"], str(folder.model)).prior.network.kind
        of_prefixes, prefix_step = read_progressive_decoder(source.parent, digest, run), None
        if of_prefixes is not None:
            weights, about = of_prefixes
            progressive_folder(partial).path.mkdir()
            about |= {"config": without_paths(about["config"]), "autoencoder": autoencoder}
            storage.write(progressive_folder(partial).model, weights, about)
            prefix_step = about["step"]
        if RunFolder(source.parent).tables.is_file():
            shutil.copyfile(RunFolder(source.parent).tables, RunFolder(partial).tables)
        card = kept_card(source.parent, config, licence) or card_of(
            config, name=name or out.name, step=meta.get("step"), bits_per_code=bits, networks=networks,
            figures=last_figures(RunFolder(source.parent)), licence=licence,
            prefix_step=prefix_step,
        )  # fmt: skip
        write_atomic(RunFolder(partial).card, card.encode())
        write_atomic(RunFolder(partial).config_json, config_bytes(config))
        partial.rename(out)
    except OSError as error:
        raise InputError(f"{out} can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(path for path in out.rglob("*") if path.is_file())


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, as plain values, without where its data and codes lie."""
    paths = (("data", "root"), ("prior", "codes"))
    return {**config, **{part: {**config[part], name: None} for part, name in paths if name in config.get(part, {})}}


def config_bytes(config: Config) -> bytes:
    """The content of config.json: every field, and no path of the data."""
    return f"{json.dumps(without_paths(to_dict(config)), indent=2)}\n".encode()
