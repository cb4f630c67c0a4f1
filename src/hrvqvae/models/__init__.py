"""Autoencoders: their contract, architectures and objectives."""
