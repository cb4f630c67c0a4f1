"""Names of configurations: another one where another result is found, the same wherever it is computed."""

from __future__ import annotations

import pytest

from hrvqvae.config import presets
from hrvqvae.config.parsing import override
from hrvqvae.config.resolve import digest_of

ALL = ("data", "model", "training", "prior")


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"training.device": "cuda:1", "training.threads": "3", "training.loggers": "tensorboard"}, True),
        ({"data.root": "/elsewhere", "data.workers": "0", "training.log_every": "7"}, True),
        ({"prior.training.device": "cuda", "prior.training.checkpoint_every": "7"}, True),
        ({"progressive.training.max_steps": "7"}, True),
        ({"training.seed": "7"}, False),
        ({"training.max_steps": "7"}, False),
        ({"training.precision": "bf16"}, False),
        ({"model.quantizer.level_betas": "0.1,0.2,0.3"}, False),
        ({"data.size": "32"}, False),
        ({"prior.network.kind": "depth"}, False),
        ({"prior.training.evaluate_every": "7"}, False),
    ],
)
def test_what_decides_the_result_changes_the_digest(given: dict[str, str], same: bool) -> None:
    config = presets.get("hrvqvae/mnist").config
    changed = override(config, given)
    assert (digest_of(changed, *ALL) == digest_of(config, *ALL)) == same
    others = [section for section in ALL if not any(name.startswith(f"{section}.") for name in given)]
    assert digest_of(changed, *others) == digest_of(config, *others)


def test_systems_have_digests_of_their_own() -> None:
    names = [name for name in presets.names() if name.endswith("/cifar10")]
    assert len({digest_of(presets.get(name).config, "model") for name in names}) == len(names)
