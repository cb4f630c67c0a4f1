"""TreeVQ: HR-VQVAE's tree of codebooks with what we found better than the paper's way (docs/what-we-changed.md)."""

from hrvqvae.config.registry import System
from hrvqvae.config.tables import FASTER_CODEBOOKS, OURS, TABLE_6, as_printed, settings
from hrvqvae.models.treevq.config import TreeVQConfig

# Grid, network, codebooks and learning rate are those of HR-VQVAE.
_OURS = settings(
    OURS,
    {
        "model.quantizer.beta": 1.0,
        "model.quantizer.level_betas": (0.05,),
        "model.quantizer.beam": 4,
        "model.quantizer.coarse_weight": 0.1,
        "training.optimizer": "muon",
        "prior.network.kind": "depth",
        "prior.network.hidden_units": [128, 128, 64, 64],
        "prior.training.batch_size": (32,),
        "prior.training.epochs": 100,
        "prior.training.learning_rate": 2e-3,
        "prior.training.warmup_steps": 100,
        "prior.training.polyak_decay": 0.99,
    },
)

SYSTEM = System(
    name="treevq",
    title="TreeVQ",
    source="ours",
    config=TreeVQConfig(),
    model="hrvqvae.models.treevq.model:TreeVQAutoencoder",
    settings=as_printed(TABLE_6) | FASTER_CODEBOOKS | _OURS,
    few_images=settings(OURS, {"prior.network.dropout": 0.3}),
    notes=("TreeVQ is not printed: the HR-VQVAE row, trained as docs/what-we-changed.md says.",),
)
