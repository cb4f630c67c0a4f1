"""The trainer, and its tasks: autoencoders, priors, progressive decoders."""
