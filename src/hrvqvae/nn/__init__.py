"""Blocks that know nothing of quantization."""

from hrvqvae.nn.convolutional import Decoder, Encoder, ResidualStack

__all__ = ["Decoder", "Encoder", "ResidualStack"]
