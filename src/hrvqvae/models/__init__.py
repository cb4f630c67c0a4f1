"""Autoencoders: their interface, architectures and objectives."""
