"""dpo_tutorial: the helper package of the course on Direct Preference Optimization."""

__version__ = "0.1.0"
