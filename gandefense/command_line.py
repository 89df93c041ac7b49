"""What every tool does around its work: help text, one clear line for a user's mistake, exit statuses."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from gandefense import config
from gandefense.distributed import LostProcess
from gandefense.errors import Interrupted, UserError
from gandefense.files import refusal
from gandefense.training.run import Run

Schema = TypeVar("Schema")


def split_arguments(arguments: list[str], usage: str) -> tuple[str | None, list[str]]:
    """Command-line words as (config path or None, key=value overrides); raises UserError for two configs."""
    configs = [word for word in arguments if "=" not in word]
    if len(configs) > 1 or any(word.startswith("-") for word in configs):
        raise UserError(
            f"expected one config file and key=value words, got {' '.join(arguments)}; {usage.strip().splitlines()[-1]}"
        )
    return (configs[0] if configs else None), [word for word in arguments if "=" in word]


def training_config(schema: type[Schema], kind: str, arguments: list[str], usage: str) -> Schema:
    """A training tool's config: from a YAML file and key=value words, or, with resume=RUN_FOLDER, from that run itself.

    Raises:
        UserError: bad words, a bad config, or a `resume` that names no run of this kind.
    """
    path, overrides = split_arguments(arguments, usage)
    resumed = [word.split("=", 1)[1] for word in overrides if word.startswith("resume=")]
    if not resumed:
        if path is None:
            raise UserError(f"no config file given; {usage.strip().splitlines()[-2].strip()}")
        loaded = config.load(schema, path, overrides)
        if loaded.resume is not None:
            raise UserError(f"{path}: resume belongs on the command line, alone: resume=RUN_FOLDER")
        return loaded
    if path is not None or len(overrides) > 1:
        raise UserError("resume=RUN_FOLDER stands alone: a run goes on with the config it was started with")
    values = Run.saved_config(resumed[0], kind)
    return config.build(schema, {**values, "resume": resumed[0]}, source=f"{resumed[0]}/config.yaml")


def run_tool(main: Callable[[list[str]], None], usage: str | None) -> None:
    """Run a tool's main function on the command line's words and end the process.

    Exit status 0: done; 2: the user's mistake, or a disk that is full or read-only, told in one line; 130: interrupted by
    Ctrl-C or SIGTERM, and the line says how to go on.
    """
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"]):
        print((usage or "").strip())
        sys.exit(0)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def thread_failed(failure: threading.ExceptHookArgs) -> None:
        if refusal(failure.exc_value) is None:  # TensorBoard's thread met a full disk: the main one is told at its next line
            show(failure)

    show, threading.excepthook = threading.excepthook, thread_failed
    signal.signal(signal.SIGTERM, interrupt)
    tells = os.environ.get("LOCAL_RANK", "0") == "0"  # of several processes on a machine one tells what all of them find
    try:
        main(arguments)
    except UserError as error:
        if tells or isinstance(error, LostProcess):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        if tells:
            print(f"\n{error}" if isinstance(error, Interrupted) else "\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        name = getattr(error, "filename", None)
        print(f"error: {f'{name}: ' if name else ''}{reason}", file=sys.stderr)
        sys.exit(2)
