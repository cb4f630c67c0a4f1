"""Vector quantization: the equations, the codebooks, the search, and the quantizers made of them."""

from hrvqvae.quantize.tree import Codes, Quantized, TreeQuantizer

__all__ = ["Codes", "Quantized", "TreeQuantizer"]
