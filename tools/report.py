#!/usr/bin/env python3
"""Print a table of a finished evaluation, so that figures in texts come from a file: the README's, or the terminal's.

usage: python tools/report.py RESULTS.json [table=readme|terminal]
"""

import json
from pathlib import Path

from gandefense.command_line import run_tool, split_arguments
from gandefense.errors import UserError
from gandefense.evaluation import report, report_tables

TABLES = {"readme": report_tables.readme_table, "terminal": report.terminal}


def main(arguments: list[str]) -> None:
    path, words = split_arguments(arguments, __doc__)
    if path is None:
        raise UserError(f"no results given; {__doc__.strip().splitlines()[-1]}")
    options = {"table": "readme", **dict(word.split("=", 1) for word in words)}
    if set(options) != {"table"} or options["table"] not in TABLES:
        raise UserError(f"expected table=readme or table=terminal, got {' '.join(words)}")
    if Path(path).is_dir():
        path = str(Path(path) / "results.json")
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{path} cannot be read as results: {error}") from None
    if not isinstance(results, dict) or results.get("schema") != 1:
        raise UserError(f"{path} is no results.json of an evaluation")
    print(TABLES[options["table"]](results))


if __name__ == "__main__":
    run_tool(main, __doc__)
