"""Quantizers of the library vector-quantize-pytorch on one latent grid: FSQ, and others by name."""

from collections.abc import Mapping
from typing import Any

from hrvqvae.config.entries import Dataset, System
from hrvqvae.config.paper_tables import COLUMNS, TABLE_8
from hrvqvae.config.tables import OURS, Part, Table
from hrvqvae.systems.library.config import FSQConfig, LibraryConfig

_NEEDS = ("vector_quantize_pytorch", "hrvqvae[library]")

# None of them is in the paper. The network and the grid are HR-VQVAE's, and so are the bits of a position.
_AS_TABLE_6 = {
    "model.stride": [8, 4, 2, 2],
    "model.hidden_units": [128, 128, 64, 64],
    "model.residual_units": 64,
    "model.quantizer.dim": [32, 32, 16, 8],
    "model.kernel": 3,
    "training.polyak_decay": 0.9,
    "training.learning_rate": 3e-3,
}
_AS_TABLE_8 = Table(source="as Table 8", columns=COLUMNS, rows=TABLE_8.rows)
_OURS = Table(
    source=OURS,
    columns=COLUMNS,
    rows={
        "training.adam_beta2": 0.99,
        "prior.network.residual_blocks": 12,
        "prior.training.epochs": 100,
        "prior.training.learning_rate": 1e-3,
        "prior.training.warmup_steps": 200,
    },
)


class _Settings:
    """The settings of a system for a data set.

    Args:
        size: the rows that say how many codes there are, m^3 of HR-VQVAE's row.
        source: of those.
    """

    def __init__(self, size: Mapping[str, Any], source: str) -> None:
        network = Table(source="as Table 6", columns=COLUMNS, rows=_AS_TABLE_6, remarks={"model.stride": "latent grid"})
        self.tables = (network, Table(source=source, columns=COLUMNS, rows=size), _AS_TABLE_8, _OURS)

    def __call__(self, dataset: Dataset) -> tuple[Part, ...]:
        few = {"prior.network.dropout": (0.3,)} if dataset.few_images else {}
        return (*(table.column(dataset.column, dataset.name) for table in self.tables), Part(OURS, few))


FSQ = System(
    name="fsq",
    title="FSQ",
    source="Mentzer et al. 2023",
    config=FSQConfig,
    model="hrvqvae.systems.library.model:FSQModel",
    settings=_Settings(
        {"model.quantizer.channel_levels": [(8, 8, 8), (8, 8, 8), (8, 8, 8), (8, 8)]}, "FSQ's own for 512 and 64 codes"
    ),
    notes=("FSQ is not printed: the HR-VQVAE row with as many codes as the tree has leaves, so the same bits.",),
    colour="#66ccee",
    marker="P",
    needs=_NEEDS,
)

LIBRARY = System(
    name="library",
    title="Library quantizer",
    source="vector-quantize-pytorch",
    config=LibraryConfig,
    model="hrvqvae.systems.library.model:LibraryModel",
    settings=_Settings({"model.quantizer.codewords": [512, 512, 512, 64]}, "as Table 6"),
    notes=(
        "SimVQ, LFQ and VectorQuantize (--model.quantizer.name) are not printed: the HR-VQVAE row with as many "
        "codewords as the tree has leaves, so the same bits.",
    ),
    colour="#555555",
    marker="X",
    needs=_NEEDS,
)
