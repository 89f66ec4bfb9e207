"""Evaluation: statistics of win rates and paired comparisons."""
