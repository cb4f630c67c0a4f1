"""Vector quantization: the equations, the codebooks, the search, and the quantizer made of them."""

from hrvqvae.quantize.quantized import Codes, Quantized, Quantizer, check_codes
from hrvqvae.quantize.residual import ResidualQuantizer

__all__ = ["Codes", "Quantized", "Quantizer", "ResidualQuantizer", "check_codes"]
