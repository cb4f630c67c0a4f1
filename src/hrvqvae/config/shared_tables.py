"""Tables that several systems take: what the paper prints for another one, and what is ours."""

from __future__ import annotations

from hrvqvae.config.paper_tables import COLUMNS, TABLE_6, TABLE_8
from hrvqvae.config.tables import OURS, Table

_NETWORK = (
    "model.stride",
    "model.hidden_units",
    "model.residual_units",
    "model.kernel",
    "model.quantizer.dim",
    "training.polyak_decay",
    "training.learning_rate",
)

# HR-VQVAE's network, grid and learning rate, for a system that the paper does not print.
NETWORK_AS_TABLE_6 = Table(
    source="as Table 6",
    columns=COLUMNS,
    rows={name: TABLE_6.rows[name] for name in _NETWORK},
    remarks=TABLE_6.remarks,
)

# HR-VQVAE's priors, for such a system.
PRIORS_AS_TABLE_8 = Table(source="as Table 8", columns=COLUMNS, rows=TABLE_8.rows)

# At the printed learning rate the codewords, and Adam's second moment, must follow the encoder faster than by their
# usual decays (docs/results.md has the measurements).
FASTER_CODEBOOKS = Table(
    source=OURS, columns=COLUMNS, rows={"model.quantizer.decay": 0.95, "training.adam_beta2": 0.99}
)

# Neither the number of blocks nor the optimizer of the PixelSNAIL priors is printed.
PIXELSNAIL_PRIORS = Table(
    source=OURS,
    columns=COLUMNS,
    rows={
        "prior.network.residual_blocks": 12,
        "prior.training.epochs": 100,
        "prior.training.learning_rate": 1e-3,
        "prior.training.warmup_steps": 200,
    },
)
MORE_DROPOUT = {"prior.network.dropout": (0.3,)}
"""For PixelSNAIL priors of few images."""
