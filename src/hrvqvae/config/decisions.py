"""Fields that may be left to the machine, "auto", and are decided once, when a run begins.

What is decided is part of the run's configuration from then on, so a run that is resumed elsewhere computes as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from hrvqvae.config.registry import imported

AUTO = "auto"
_DECIDED_BY = "decided by"

C = TypeVar("C")


def decided_on_start(by: str) -> Any:
    """A dataclass field that is "auto" until `by` ("module:function") decides.

    The function takes the dataclass that holds the field, in which earlier fields are decided, and gives the value.
    """
    return dataclasses.field(default=AUTO, metadata={_DECIDED_BY: by})


def decide(config: C, made: Mapping[str, str] = MappingProxyType({}), prefix: str = "") -> tuple[C, dict[str, str]]:
    """A configuration with every open field decided, and what was decided, by dotted name.

    Args:
        config: a dataclass, or any value, which stays as it is.
        made: dotted name -> value, of decisions that were made before; they are kept.
        prefix: dotted name of `config`, with a dot at its end.

    Raises:
        InputError: nothing that a field needs is on this machine.
    """
    found: dict[str, str] = {}
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config, found
    for one in dataclasses.fields(config):
        name, value = prefix + one.name, getattr(config, one.name)
        by = one.metadata.get(_DECIDED_BY)
        if by is None:
            decided, inner = decide(value, made, f"{name}.")
            found |= inner
        elif value == AUTO:
            decided = found[name] = made.get(name) or imported(by)(config)
        else:
            continue
        if decided is not value:
            config = dataclasses.replace(config, **{one.name: decided})
    return config, found
