"""Blocks that know nothing of quantization."""

from hrvqvae.nn.causal import Attention, CausalConv2d, GatedResidualBlock, attend
from hrvqvae.nn.convolutional import Decoder, Encoder, ResidualStack

__all__ = ["Attention", "CausalConv2d", "Decoder", "Encoder", "GatedResidualBlock", "ResidualStack", "attend"]
