"""Tables of configuration: each value beside its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hrvqvae.utils.errors import InputError

OURS = "ours"


@dataclass(frozen=True)
class Part:
    """Fields of a configuration from one source.

    Attributes:
        source: such as "Table 5", or OURS.
        values: dotted name -> value.
        remarks: dotted name -> what a value was derived from, where it is not printed itself.
    """

    source: str
    values: Mapping[str, Any]
    remarks: Mapping[str, str] = field(default_factory=dict)

    def source_of(self, name: str) -> str:
        """Where the value of that dotted name comes from."""
        return f"{self.source} ({self.remarks[name]})" if name in self.remarks else self.source

    def only(self, wanted: Callable[[str], bool]) -> Part:
        """The fields whose dotted names are wanted."""
        return Part(self.source, {name: value for name, value in self.values.items() if wanted(name)}, self.remarks)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a column for each of several configurations.

    Attributes:
        source: its name.
        columns: names of the columns.
        rows: dotted name -> one value for all columns, or a list with one value for each (None: not in that column).
        remarks: dotted name -> what its row was derived from.
    """

    source: str
    columns: tuple[str, ...]
    rows: Mapping[str, Any]
    remarks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.rows.items():
            if isinstance(value, list) and len(value) != len(self.columns):
                raise ValueError(f"{self.source}: {name} has {len(value)} values for {len(self.columns)} columns")

    def column(self, name: str, for_data: str = "") -> Part:
        """The fields of a column.

        Args:
            name: of the column.
            for_data: the data set that takes it, where that is another than the column's own.

        Raises:
            InputError: there is no such column.
        """
        if name not in self.columns:
            raise InputError(f"{self.source} has no column {name!r}; it has {', '.join(self.columns)}")
        place = self.columns.index(name)
        values = {key: value[place] if isinstance(value, list) else value for key, value in self.rows.items()}
        borrowed = self.source != OURS and for_data not in ("", name)
        source = f"{self.source} ({name})" if borrowed else self.source
        return Part(source, {key: value for key, value in values.items() if value is not None}, self.remarks)
