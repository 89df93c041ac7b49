#!/usr/bin/env python3
"""Measure what everything costs, as ratios in one run: gradient maps, restorers, attacks, training, evaluation, growth.

The table goes to the terminal; benchmark.json, benchmark.md and growth.png go into a new numbered folder in runs/, or
into output=FOLDER. Parts: maps, restorers, attacks, training, evaluation, growth. quick=true only shows that all runs.

usage: python tools/benchmark.py [CONFIG] [parts=[maps,restorers]] [output=FOLDER] [device=cuda] [quick=true] [key=value …]
"""

from gandefense import config
from gandefense.benchmark.run import benchmark
from gandefense.benchmark.settings import BenchmarkConfig
from gandefense.command_line import run_tool, split_arguments


def main(arguments: list[str]) -> None:
    path, overrides = split_arguments(arguments, __doc__)
    results = benchmark(config.load(BenchmarkConfig, path, overrides))
    made = results["made"]
    print(results["table"])
    print(f"{made['device']}, {made['threads']} threads, {made['images']} in batches of {made['batch_size']}")
    print(f"{made['seconds']:.0f} s; written to {made['output']}")


if __name__ == "__main__":
    run_tool(main, __doc__)
