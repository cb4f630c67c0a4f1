"""Training: one loop for every stage; only the step differs."""
