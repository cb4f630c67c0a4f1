"""The base class of every section of a configuration, and the types of its fields."""

import copy
import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from numbers import Integral, Real
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self, TypeVar, Union, cast

from hrvqvae.utils.errors import InputError, near_names, require

AUTO: Final = "auto"
_MAX_DEPTH = 8  # of sections inside sections
T = TypeVar("T")


class Range(NamedTuple):
    """The valid values of a field, in its type: `Annotated[int, Range(lambda value: value >= 1, "at
    least 1")]`.
    """

    holds: Callable[[Any], bool]
    requirement: str  # completes the message "it must be ..."


Positive = Annotated[int, Range(range(1, 2**31).__contains__, "at least 1 and below 2^31")]
AtLeastTwo = Annotated[int, Range(range(2, 2**31).__contains__, "at least 2 and below 2^31")]
Count = Annotated[int, Range(range(2**31).__contains__, "at least 0 and below 2^31")]
Odd = Annotated[int, Range(range(1, 2**31, 2).__contains__, "odd and positive, and below 2^31")]
Weight = Annotated[float, Range(lambda value: 0 <= value < math.inf, "at least 0")]
Share = Annotated[float, Range(lambda value: 0 <= value < 1, "at least 0 and below 1")]
OpenUnit = Annotated[float, Range(lambda value: 0 < value < 1, "between 0 and 1")]
Rate = Annotated[float, Range(lambda value: 0 < value < math.inf, "above 0")]
PerLevel = Annotated[tuple[T, ...], Range(bool, "one value, or one per level")]
"""A value for all levels, or one per level, coarse first. Here it is only checked that there is
one; `parsing.stage_config` checks the number.
"""

_TYPE_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}
_get_hints = cache(typing.get_type_hints)


def _parse(value: Any, hint: Any) -> Any:
    """Convert a value, or its text, to the type of a field. Raises ValueError, which names the
    valid values.
    """
    origin = typing.get_origin(hint)
    parts = typing.get_args(hint)
    if origin is Annotated:
        parsed = _parse(value, parts[0])
        for limit in parts[1:]:
            if isinstance(limit, Range) and not limit.holds(parsed):
                raise ValueError(limit.requirement)
        return parsed
    # X | None
    if origin in (Union, UnionType):
        if NoneType in parts and value in (None, "null"):
            return None
        requirements = []
        for part in parts:
            try:
                return _parse(value, part)
            except ValueError as error:
                requirements.append("null" if part is NoneType else str(error))
        raise ValueError(" or ".join(requirements))
    if origin is tuple:
        if isinstance(value, str):
            value = [part.strip() for part in value.strip().strip("[]").split(",") if part.strip()]
        return tuple(
            _parse(part, parts[0])
            for part in (value if isinstance(value, (list, tuple)) else [value])
        )
    if origin is Literal:
        if value in parts:
            return value
        raise ValueError(" or ".join(map(str, parts)))
    if hint is bool and value in ("true", "false"):
        return value == "true"

    # A number may be a text, or of another library such as numpy. A bool is not a number here. What
    # is left is a text, a bool, or a section; the mappings of a file were flattened before.
    kind = {int: Integral, float: Real}.get(hint)
    if kind is None and isinstance(value, hint):
        return value
    if kind and isinstance(value, (str, kind)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return hint(value)
    raise ValueError(_TYPE_NAMES.get(hint, "a mapping of fields"))


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,)
)
class Section:
    """A part of a configuration. A subclass is a frozen dataclass whose values are checked against
    their types.

    The type of a field is int, float, str, bool, Literal, a tuple of these, any of these or None,
    or a section. A field also takes text, from a file or the command line: "8", "4,1,0" for a
    tuple, "null" for None.
    """

    # dotted name in a configuration, for messages: `class Mine(Section, section="mine")`
    section: ClassVar[str] = ""
    decided_by: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Fields that are "auto" until a run begins: name -> "module:function". `schema.decide_auto`
    calls the function with the section, and it returns the value.
    """
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, section: str | None = None) -> None:
        cls.section = cls.section if section is None else section
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        self._set(vars(self))

    def _set(self, values: Mapping[str, Any]) -> None:
        """Set fields to parsed values, and check the section; only while it is being made."""
        hints = _get_hints(cast(Any, type(self)), include_extras=True)
        for name, value in values.items():
            try:
                object.__setattr__(self, name, _parse(value, hints[name]))
            except ValueError as error:
                require(False, self._qualify(name), value, str(error))
        self.check()

    def check(self) -> None:
        """Raise InputError if fields contradict each other."""

    def require(self, holds: bool, name: str, requirement: str) -> None:
        """Raise InputError about the field `name` unless `holds`; `requirement` names the valid
        values.
        """
        require(holds, self._qualify(name), getattr(self, name), requirement)

    def replace(self, /, **changes: Any) -> Self:
        """Return a copy with new values; a dotted name is a field of an inner section.

        Raises InputError if a field is unknown, or a value has the wrong type or is out of range.
        """
        # Divide the changes into values of this section and of the sections inside it.
        fields = vars(self)
        values = {}
        inner = dict[str, dict[str, Any]]()
        for name, value in changes.items():
            first, _, below = name.partition(".")
            if first not in fields or (below and not isinstance(fields[first], Section)):
                raise InputError(f"unknown field {self._qualify(name)!r}: {self._hint(name)}")
            if below:
                inner.setdefault(first, {})[below] = value
            else:
                values[first] = value
        values |= {first: fields[first].replace(**changed) for first, changed in inner.items()}
        replaced = copy.copy(self)
        replaced._set(values)
        return replaced

    def _hint(self, name: str) -> str:
        """Return the fields that an unknown field may stand for."""
        leaf = name.rpartition(".")[2]
        leaves = flatten(self)
        same_leaf = (
            self._qualify(path)
            for path in leaves
            if path.endswith(f".{leaf}") or path.replace(".", "_") == name  # model_stride
        )
        near = (
            " or ".join(same_leaf)
            or near_names(name.partition(".")[0], vars(self))
            or near_names(leaf, {path.rpartition(".")[2] for path in leaves})
        )
        return f"did you mean {near}?" if near else f"the fields are {', '.join(vars(self))}"

    def _qualify(self, name: str) -> str:
        return f"{self.section}.{name}" if self.section else name


def to_dict(section: Section) -> dict[str, Any]:
    """Return a configuration as nested plain values, for JSON and YAML."""
    return {
        name: to_dict(value) if isinstance(value, Section) else value
        for name, value in vars(section).items()
    }


def flatten(tree: Section | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the value of every leaf of a configuration or of a nested mapping by its dotted name,
    in order. Raises InputError if the mapping is too deep.
    """
    if prefix.count(".") > _MAX_DEPTH:
        raise InputError(f"{prefix[:40]}... is nested too deeply for a configuration")
    leaves = dict[str, Any]()
    for name, value in (vars(tree) if isinstance(tree, Section) else tree).items():
        if isinstance(value, Section | Mapping):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
