"""A hierarchical ID for every row of a Parquet file of embeddings, for generative recommenders: prefixes are clusters.

    python examples/semantic_ids.py embeddings.parquet ids.parquet --id item --embedding vector

The table that is written has the id column and `semantic_id`, L + 1 integers: the row's indices in a tree of L levels,
coarse first, and a last number that tells apart rows with equal indices, 0 for the first of them. The file is read in
batches, once for each pass; nothing that exists is written over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hrvqvae import InputError, TreeVQ
from hrvqvae.utils.errors import explain_write_errors
from hrvqvae.utils.outputs import replace_file

ROWS = 16_384  # in memory together


class Embeddings:
    """A column of lists of floats, (N, D), which can be iterated again and again in float32 batches."""

    def __init__(self, path: Path, ids: str, embedding: str) -> None:
        self.path, self.embedding, self.columns = path, embedding, [ids, embedding]
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} can't be read as Parquet ({' '.join(str(error).split())[:100]})") from error
        names = file.schema_arrow.names
        if missing := [name for name in self.columns if name not in names]:
            raise InputError(f"{path} has no column {missing[0]}; it has {', '.join(names)}")
        self.rows, self.id_field = file.metadata.num_rows, file.schema_arrow.field(ids)
        kind = file.schema_arrow.field(embedding).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or not pa.types.is_floating(kind.value_type):
            raise InputError(f"column {embedding} is {kind}; it must be lists of floats")
        if self.rows == 0:
            raise InputError(f"{path} has no rows")
        self.dim = len(next(file.iter_batches(1, columns=[embedding])).column(0)[0] or ())

    def parts(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """(ids, embeddings (n, D)) of a few rows after the others."""
        first = 0
        try:
            for batch in pq.ParquetFile(self.path).iter_batches(ROWS, columns=self.columns):
                lists = batch.column(self.embedding)
                odd = np.asarray(lists.value_lengths().fill_null(-1)) != self.dim
                if odd.any():
                    row = first + int(odd.argmax())
                    raise InputError(f"{self.path}: row {row} has no embedding of {self.dim} values, as the first has")
                first += len(lists)
                values = np.asarray(lists.flatten(), np.float32).reshape(len(lists), self.dim)
                yield batch.column(self.columns[0]), values
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path} is damaged ({' '.join(str(error).split())[:100]})") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        return (values for _, values in self.parts())


class LastNumber:
    """How many rows before it have a row's leaf."""

    def __init__(self, leaves: int) -> None:
        self.seen = np.zeros(leaves, np.int32)

    def of(self, leaf: np.ndarray) -> np.ndarray:
        """(n,) leaves of the next rows -> (n,) numbers."""
        order = np.argsort(leaf, kind="stable")
        found, begins, counts = np.unique(leaf[order], return_index=True, return_counts=True)
        number = np.empty(len(leaf), np.int32)
        number[order] = np.arange(len(leaf)) - np.repeat(begins - self.seen[found], counts)
        self.seen[found] += counts.astype(np.int32)
        return number


def write_ids(source: Path, target: Path, ids: str, embedding: str, layer: dict[str, int], passes: int) -> str:
    """Write the table of IDs; -> a line about it. Raises InputError."""
    if target.exists():
        raise InputError(f"{target} is there already; name another file")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target} can't be written: there is no folder {target.absolute().parent}")
    vectors = Embeddings(source, ids, embedding)
    tree = TreeVQ(max(1, vectors.dim), **layer).fit(vectors, passes=passes, batch=ROWS)
    leaves = tree.quantizer.levels[-1].num_codewords
    last = LastNumber(leaves)
    kind = pa.list_(pa.int32(), layer["levels"] + 1)
    schema = pa.schema([vectors.id_field, pa.field("semantic_id", kind)])
    with explain_write_errors(target), replace_file(target) as temporary, pq.ParquetWriter(temporary, schema) as file:
        for names, values in vectors.parts():
            indices = tree.encode(values)
            number = last.of(tree.codeword_indices(indices)[:, -1].numpy())
            whole = np.concatenate([indices.numpy().astype(np.int32), number[:, None]], 1)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(whole.reshape(-1)), type=kind)
            file.write_batch(pa.record_batch([names, lists], schema=schema))
    used = int((last.seen > 0).sum())
    return f"{vectors.rows:,} rows, {used:,} of {leaves:,} leaves, at most {last.seen.max():,} rows in one: {target}"


def main() -> None:
    """Read the options, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("source", type=Path, help="Parquet file of embeddings")
    parser.add_argument("target", type=Path, help="Parquet file to write")
    parser.add_argument("--id", default="id", help="column that names a row (default: id)")
    parser.add_argument("--embedding", default="embedding", help="column of float lists (default: embedding)")
    for name, value in (("codewords", 16), ("levels", 3), ("beam", 4)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of TreeVQ (default: {value})")
    parser.add_argument("--passes", type=int, default=10, help="over all rows (default: 10)")
    given = parser.parse_args()
    layer = {"codewords": given.codewords, "levels": given.levels, "beam": given.beam}
    try:
        print(write_ids(given.source, given.target, given.id, given.embedding, layer, given.passes))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
