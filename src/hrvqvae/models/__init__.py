"""Autoencoders: the contract, one class for each architecture, and the systems that are made of them. No torch."""
