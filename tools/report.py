#!/usr/bin/env python3
"""Print a table of finished results, so that figures in texts come from a file.

RESULTS.json is what an evaluation wrote (or its folder); table=calibration takes what tools/calibrate.py wrote.
Tables: readme (an attack a line), terminal (what the evaluation printed), detection (detectors under attack), calibration.

usage: python tools/report.py RESULTS.json [table=readme|terminal|detection|calibration]
"""

import json
from pathlib import Path

from gandefense.command_line import run_tool, split_arguments
from gandefense.errors import UserError
from gandefense.evaluation import readme_tables, report, report_tables

EVALUATION, CALIBRATION = "an evaluation", "a calibration"
TABLES = {
    "readme": (report_tables.readme_table, EVALUATION),
    "terminal": (report.terminal, EVALUATION),
    "detection": (readme_tables.detection, EVALUATION),
    "calibration": (readme_tables.calibration, CALIBRATION),
}


def kind_of(results: object) -> str | None:
    """What kind of results a file holds; None for anything else."""
    if not isinstance(results, dict) or results.get("schema") != 1:
        return None
    return CALIBRATION if results.get("kind") == "calibration" else EVALUATION


def main(arguments: list[str]) -> None:
    path, words = split_arguments(arguments, __doc__)
    if path is None:
        raise UserError(f"no results given; {__doc__.strip().splitlines()[-1]}")
    options = {"table": "readme", **dict(word.split("=", 1) for word in words)}
    if set(options) != {"table"} or options["table"] not in TABLES:
        raise UserError(f"expected table={', table='.join(TABLES)}, got {' '.join(words)}")
    if Path(path).is_dir():
        path = str(Path(path) / "results.json")
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{path} cannot be read as results: {error}") from None
    table, wanted = TABLES[options["table"]]
    found = kind_of(results)
    if found != wanted:
        raise UserError(f"{path} is no results.json of {wanted}{f', but of {found}' if found else ''}")
    try:
        print(table(results))
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration, ValueError) as error:
        raise UserError(f"{path} is no whole results.json of {wanted} ({type(error).__name__}: {error})") from None


if __name__ == "__main__":
    run_tool(main, __doc__)
