#!/usr/bin/env python3
"""Make a table of the papers, or of their rivals, by measuring everything in it: results/NAME.json and results/NAME.md.

NAME is rivals, adaptive, adaptive-autoattack, gan-levels, gan-celeba or trn-maps; or trn-attacks, trn-cross-attack, trn-ablation,
trn-blocks, trn-figures, each also with -fashion behind it, for Fashion-MNIST. What a table consists of is
configs/reproduce/NAME.yaml. Trainings and evaluations that are finished in runs/reproduce are used again; a killed one goes on.

usage: python tools/reproduce.py NAME [data.limit=N] [key=value …]
"""

import time
from pathlib import Path

from gandefense import config
from gandefense.command_line import run_tool, split_arguments
from gandefense.errors import UserError
from gandefense.evaluation.report import text_table
from gandefense.reproduce import TABLES, writing

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "reproduce"


def main(arguments: list[str]) -> None:
    name, overrides = split_arguments(arguments, __doc__)
    if name not in TABLES:
        raise UserError(f"{'no table named' if name is None else f'unknown table {name!r}'}; known: {', '.join(TABLES)}")
    schema, make = TABLES[name]
    settings = config.load(schema, CONFIGS / f"{name}.yaml", overrides)
    begun = time.perf_counter()
    tables, figures = make(settings)
    page = writing.write(name, Path(settings.results), tables, figures, writing.made_by(settings, time.perf_counter() - begun))
    for table in tables:
        print(f"\n{table.title}\n{text_table(table.header, table.rows)}")
    print(f"\nwritten: {page} and {page.with_suffix('.json').name}")


if __name__ == "__main__":
    run_tool(main, __doc__)
