"""Vector quantization: the equations, the codebooks, the search, and the quantizer made of them."""

from hrvqvae.quantize.quantized import (
    QUALITIES,
    Codes,
    Quantized,
    check_codes,
    choose_depths,
    count_levels,
    stop_at,
)
from hrvqvae.quantize.residual import ResidualQuantizer

__all__ = [
    "QUALITIES",
    "Codes",
    "Quantized",
    "ResidualQuantizer",
    "check_codes",
    "choose_depths",
    "count_levels",
    "stop_at",
]
