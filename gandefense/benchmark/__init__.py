"""What everything costs, as ratios measured in one run; see tools/benchmark.py."""
