"""Data: preference pairs, how they are made, scored and loaded. Knows nothing of training."""
