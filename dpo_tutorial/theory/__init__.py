"""Theory: finite worlds, Bradley-Terry, tabular policies and the losses. Knows nothing of models."""
