"""Training: models, log-probabilities, the loop by hand and the bridge to TRL."""
