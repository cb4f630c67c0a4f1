"""Losses that need a network of their own: perceptual and adversarial."""
