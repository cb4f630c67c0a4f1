"""Vector quantization: the equations, the codebooks, the search, and the quantizers made of them."""

from hrvqvae.quantize.codebook import random_latents
from hrvqvae.quantize.flat import FlatQuantizer, check_codes
from hrvqvae.quantize.quantized import Codes, Quantized
from hrvqvae.quantize.tree import TreeQuantizer

__all__ = ["Codes", "FlatQuantizer", "Quantized", "TreeQuantizer", "check_codes", "random_latents"]
