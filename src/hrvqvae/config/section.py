"""The base class of every section of a configuration, and the types of its fields."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self, TypeVar, Union, cast

from hrvqvae.utils.errors import InputError, near_names, require

AUTO: Final = "auto"
T = TypeVar("T")


class Range(NamedTuple):
    """The valid numbers of a field: `Annotated[int, Range(1, 256)]` is 1 to 255."""

    least: float
    below: float = 2**31


Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
AtLeastTwo = Annotated[int, Range(2)]
Kernel = Literal[1, 3, 5, 7, 9]
Weight = Annotated[float, Range(0, math.inf)]
Rate = Annotated[float, Range(1e-30, math.inf)]
Share = Annotated[float, Range(0, 1)]
OpenUnit = Annotated[float, Range(1e-30, 1)]
PerLevel = tuple[T, ...]
"""A value for all levels, or one per level, coarse first; `parsing.stage_config` checks the number
of values.
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
        number = _parse(value, parts[0])
        limits: Range = parts[1]
        if not limits.least <= number < limits.below:
            raise ValueError(f"at least {limits.least} and below {limits.below}")
        return number

    # X | Y | None
    if origin in (Union, UnionType):
        if NoneType in parts and value in (None, "null"):
            return None
        *others, last = (part for part in parts if part is not NoneType)
        for part in others:
            with suppress(ValueError):
                return _parse(value, part)
        return _parse(value, last)
    if origin is tuple:
        if isinstance(value, str):
            value = [part.strip() for part in value.strip().strip("[]").split(",") if part.strip()]
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_parse(part, parts[0]) for part in values)
    if origin is Literal:
        for choice in parts:
            if str(value) == str(choice):
                return choice
        raise ValueError(" or ".join(map(str, parts)))
    if hint is bool and value in ("true", "false"):
        return value == "true"

    # A number may be a text, or of another library such as numpy. A bool is not a number here.
    if hint in (int, float):
        with suppress(TypeError, ValueError, OverflowError):
            number = hint(value)
            is_equal = number == value and not isinstance(value, bool)
            if is_equal or isinstance(value, str):
                return number
    elif isinstance(value, hint):
        return value
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
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, section: str | None = None) -> None:
        cls.section = cls.section if section is None else section
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        hints = _get_hints(cast(Any, type(self)), include_extras=True)
        for name, value in vars(self).items():
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
        # divide the changes into values of this section and of the sections inside it
        fields = vars(self)
        values = {}
        inner = dict[str, dict[str, Any]]()
        for name, value in changes.items():
            first, _, below = name.partition(".")
            if first not in fields or (below and not isinstance(fields[first], Section)):
                unknown = self._qualify(name)
                near = near_names(unknown, [self._qualify(known) for known in flatten(self)])
                hint = f"did you mean {near}?" if near else "hrvqvae presets NAME shows all fields"
                raise InputError(f"unknown field {unknown!r}: {hint}")
            if below:
                inner.setdefault(first, {})[below] = value
            else:
                values[first] = value
        values |= {first: fields[first].replace(**changed) for first, changed in inner.items()}
        return type(self)(**fields | values)

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
    in order.
    """
    leaves = dict[str, Any]()
    for name, value in (vars(tree) if isinstance(tree, Section) else tree).items():
        if isinstance(value, Section | Mapping):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
