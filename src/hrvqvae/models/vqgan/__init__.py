"""VQGAN: one flat codebook, trained for what images look like as well (Esser et al. 2021)."""

from hrvqvae.config.registry import System
from hrvqvae.config.tables import OURS, settings
from hrvqvae.models.vqgan.config import VQGANConfig

# Nothing of it is printed: grid and network of Table 6, 1,024 codewords, a transformer prior.
_OURS = settings(
    OURS,
    {
        "model.stride": [8, 4, 2, 2],
        "model.hidden_units": [128, 128, 64, 64],
        "model.residual_units": 64,
        "model.kernel": 3,
        "model.quantizer.beta": 0.25,
        "model.quantizer.codewords": 1024,
        "model.quantizer.dim": [32, 32, 16, 8],
        "model.quantizer.decay": 0.95,
        "model.adversarial_weight": 0.1,
        "model.adversarial_start": [10_000, 10_000, 1_000, 1_000],
        "model.discriminator_units": [64, 64, 32, 32],
        "model.discriminator_layers": [3, 3, 2, 2],
        "training.learning_rate": [3e-4, 3e-4, 1e-3, 1e-3],
        "training.polyak_decay": 0.9,
        "prior.network.kind": "transformer",
        "prior.network.hidden_units": [512, 512, 128, 128],
        "prior.network.layers": [12, 12, 6, 6],
        "prior.network.dropout": 0.1,
        "prior.training.batch_size": (32,),
        "prior.training.polyak_decay": 0.99,
        "prior.training.epochs": 100,
        "prior.training.learning_rate": 1e-3,
        "prior.training.warmup_steps": 200,
    },
)


SYSTEM = System(
    name="vqgan",
    title="VQGAN",
    source="Esser et al. 2021",
    config=VQGANConfig(),
    model="hrvqvae.models.vqgan.model:VQGAN",
    objective="hrvqvae.models.vqgan.objective:AdversarialObjective",
    settings=_OURS,
    few_images=settings(OURS, {"model.adversarial_start": 1_000, "prior.network.dropout": 0.3}),
    notes=(
        "VQGAN is not printed: the HR-VQVAE row's grid and network, 1,024 codewords, a transformer prior. Its "
        "adversarial weight is 0.1: with the usual 0.8 and this learning rate, an untrained discriminator undoes the "
        "decoder at once.",
    ),
)
