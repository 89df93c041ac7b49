"""A table of the papers on disk: results/NAME.json with every figure, results/NAME.md to read."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from gandefense import config as configuration
from gandefense.errors import UserError
from gandefense.evaluation.measurement import all_versions
from gandefense.evaluation.report_tables import markdown_table
from gandefense.evaluation.tables import json_ready
from gandefense.evaluation.wording import Table, typed
from gandefense.files import write_text


def check_folder(folder: Path) -> None:
    """Make a folder if need be; raises UserError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to the folder {folder}: it is read-only")


def commit() -> str | None:
    """The source's commit, with "+" where files were changed since; None outside a git clone."""
    folder = Path(__file__).parent
    try:
        name = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return name[:12] + ("+" if changed.stdout.strip() else "")


def made_by(config: Any, seconds: float) -> dict[str, Any]:
    """How a table was made: command, date, versions, commit, the whole config."""
    return {
        "command": f"python {typed()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "versions": all_versions(),
        "commit": commit(),
        "config": configuration.to_dict(config),
    }


def markdown(name: str, tables: list[Table], made: dict[str, Any]) -> str:
    """The page: table after table, and how it was made."""
    parts = [f"# {name}", "", f"`{made['command']}`", ""]
    for table in tables:
        parts += [f"## {table.title}", "", table.note, "", markdown_table(table.header, table.rows), ""]
    data, seed = made["config"]["data"], made["config"]["seed"]
    versions = ", ".join(f"{what} {version}" for what, version in made["versions"].items())
    parts += [
        "## How it was made",
        "",
        f"- {data['name']}, {data['limit'] or 'all'} test images of a seeded shuffle (seed {seed}); 95 % intervals",
        f"- {made['date']}, commit {made['commit'] or 'unknown'}; {versions}",
        "- every figure, with n, is in the JSON file of the same name",
        "",
    ]
    return "\n".join(parts)


def write(name: str, folder: Path, tables: list[Table], figures: dict[str, Any], made: dict[str, Any]) -> Path:
    """Write NAME.json and NAME.md into a folder, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json_ready({"schema": 1, "name": name, **figures, "made": made})
    write_text(folder / f"{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    page = folder / f"{name}.md"
    write_text(page, markdown(name, tables, made))
    return page
