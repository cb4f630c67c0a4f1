"""Training: one trainer; what it trains, an autoencoder, a prior or a progressive decoder, is a task."""
