#!/usr/bin/env python3
"""Fetch a data set into the data root and check it.

usage: python tools/fetch_data.py cifar10 [root=FOLDER]        (or fashion_mnist, svhn)
"""

from gandefense.command_line import run_tool
from gandefense.data import sources
from gandefense.errors import UserError


def main(arguments: list[str]) -> None:
    names = [word for word in arguments if "=" not in word]
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    if len(names) != 1 or set(options) - {"root", "data.root"}:
        raise UserError(f"usage: python tools/fetch_data.py NAME [root=FOLDER], NAME one of {', '.join(sources.FILE_SETS)}")
    folder = sources.fetch(names[0], root=options.get("root") or options.get("data.root"))
    print(f"{names[0]}: complete and checked, in {folder}")


if __name__ == "__main__":
    run_tool(main, __doc__)
