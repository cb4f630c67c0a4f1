"""Give every row of a Parquet file of embeddings a unique ID whose prefixes are clusters, for
generative recommenders.

    pip install '.[ids,shards]'
    python examples/semantic_ids.py embeddings.parquet ids.parquet

The file has the columns `id` and `embedding`. No two IDs are equal: rows that share a leaf move to
free leaves near them. All leaves are in memory; for more than 4 million rows of 64 values take
`linked=1`, which keeps one codebook per level.
"""

import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hrvqvae import TreeVQ

source, target = map(Path, sys.argv[1:3])
table = pq.read_table(source, columns=["id", "embedding"])
vectors = np.stack(table["embedding"].to_numpy()).astype(np.float32)
codewords = 2 ** math.ceil(math.log2(4 * len(vectors)) / 3)  # four leaves or more per row

tree = TreeVQ(dim=vectors.shape[1], codewords=codewords, levels=3).fit(vectors)
ids = tree.unique_indices(vectors)  # (rows, 3)
with target.open("xb") as file:
    pq.write_table(table.select(["id"]).append_column("semantic_id", pa.array(ids.tolist())), file)

prefix = ids[:1, :2]  # while an ID is decoded, only what exists may follow
follows = tree.valid_next(prefix, ids)[0].nonzero().flatten().tolist()
print(f"{len(ids):,} IDs of 3 indices below {codewords}; after {prefix[0].tolist()} come {follows}")
