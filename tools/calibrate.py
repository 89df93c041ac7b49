#!/usr/bin/env python3
"""Measure the evaluator: three defences that are known not to hold, and whether it sees through them.

Real CIFAR-10 test images and the shipped classifier; some minutes on two CPU cores. `python tools/report.py RESULTS.json
table=calibration` prints the table.

usage: python tools/calibrate.py [limit=256] [results=results/calibration.json] [device=auto]
"""

import datetime
import json
from pathlib import Path

from gandefense.command_line import run_tool
from gandefense.errors import UserError
from gandefense.evaluation import calibration
from gandefense.evaluation.measurement import all_versions
from gandefense.evaluation.wording import typed
from gandefense.files import numbered_folder, write_text


def main(arguments: list[str]) -> None:
    options = {"limit": str(calibration.IMAGES), "results": "", "device": "auto"}
    known = set(options)
    options |= dict(word.split("=", 1) if "=" in word else (word, "") for word in arguments)
    if set(options) != known or not options["limit"].isdecimal() or int(options["limit"]) < 1:
        raise UserError(f"expected limit=N, results=FILE or device=NAME, got {' '.join(arguments)}")
    folder = None
    if not options["results"] and int(options["limit"]) != calibration.IMAGES:  # a trial does not take the place of the figures
        folder = numbered_folder(Path("runs"), "calibrate")
        options["results"] = str(folder / "calibration.json")
    target = Path(options["results"] or "results/calibration.json")
    if not target.parent.is_dir() or target.is_dir():
        raise UserError(f"results={target}: results=FILE names a file in a folder that is there")
    folder = folder or numbered_folder(Path("runs"), "calibrate")
    results = calibration.run(folder, int(options["limit"]), device=options["device"])
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results["made"] = {"command": typed(), "date": date, "versions": all_versions()}
    write_text(target, json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(f"{target}; the evaluations are in {folder}")


if __name__ == "__main__":
    run_tool(main, __doc__)
