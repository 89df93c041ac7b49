"""Data sets: what they are (datasets), where their bytes come from (sources), how they reach a network (batches)."""
