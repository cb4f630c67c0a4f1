"""Vector quantization: the equations, the codebooks, the search, and the quantizer made of them."""

from hrvqvae.quantize.quantized import Codes, Quantized, check_codes
from hrvqvae.quantize.residual import ResidualQuantizer

__all__ = ["Codes", "Quantized", "ResidualQuantizer", "check_codes"]
