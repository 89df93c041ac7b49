#!/usr/bin/env python3
"""Write the reference pages: docs/api/*.md from docstrings, docs/config-keys.md from config classes, docs/networks.md from cards.

The source is read, not imported, so that defaults stand as they are written (8 / 255) and no Python version matters.

usage: python tools/api_pages.py [check=true]        (check: write nothing, exit with status 1 if a page is out of date)
"""

import ast
import functools
import json
import re
import sys
import textwrap
import tokenize
from pathlib import Path
from typing import Any

from gandefense.command_line import run_tool
from gandefense.errors import UserError
from gandefense.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, DOCS = ROOT / "gandefense", ROOT / "docs"
COMMAND = "python tools/api_pages.py"
NOTE = f"<!-- Written by `{COMMAND}` from the source. Change the source, not this page. -->"

# page → (what it holds, modules: files or folders of the package)
PAGES: dict[str, tuple[str, list[str]]] = {
    "gandefense": (
        "What `import gandefense` gives, and how networks and parts of your own are named.",
        ["__init__.py", "zoo.py", "own_parts.py", "errors.py", "config.py", "weights_io.py"],
    ),
    "data": ("Data sets, where their bytes come from, and batches.", ["data"]),
    "attacks": ("What can be asked of an attack, the attacks, threat models, and attacked sets on disk.", ["attacks"]),
    "restorers": ("The interface of all restorers, and the restorers.", ["restorers"]),
    "classifiers": ("The networks that are defended.", ["classifiers"]),
    "training": ("The training loops and what they share.", ["training", "precision.py", "distributed.py"]),
    "evaluation": (
        "The evaluator, its figures and its checks. What only draws the report is left out.",
        [f"evaluation/{name}.py" for name in ("evaluator", "settings", "metrics", "checks", "curve_checks", "cost", "fid")]
        + [f"evaluation/{name}.py" for name in ("tables", "figures", "calibration")],
    ),
}
CONFIGS = {  # config class → (its file, the tool and the configs that it is the schema of)
    "ClassifierConfig": ("training/classifier.py", "tools/train_classifier.py", "configs/classifier"),
    "AverageConfig": ("training/averaging.py", "tools/average_weights.py", "configs/average"),
    "TRNConfig": ("training/trn.py", "tools/train_trn.py", "configs/trn"),
    "GANConfig": ("training/gan_config.py", "tools/train_gan.py", "configs/gan"),
    "JointConfig": ("training/joint_start.py", "tools/train_joint.py", "configs/joint"),
    "EvaluateConfig": ("evaluation/settings.py", "tools/evaluate.py", "configs/evaluate"),
}
SECTIONS = ("Args", "Returns", "Raises", "Attributes", "Yields")


def tree(path: Path) -> ast.Module:
    """A source file, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


# --- docs/api


def docstring(node: ast.AST) -> str:
    """A docstring as Markdown: its sections become lists."""
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
        head, _, rest = block.partition("\n")
        name = head.rstrip(":")
        if head.endswith(":") and name in SECTIONS:
            parts.append(f"*{name}*\n\n{_entries(textwrap.dedent(rest))}")
        else:
            parts.append(block)
    return "\n\n".join(part for part in parts if part)


def _entries(text: str) -> str:
    """The entries of a section, "name: what it is", as a list; a line that begins with a space goes on."""
    entries: list[str] = []
    for line in text.splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line.strip())
    return "\n".join(re.sub(r"^([\w., ]+?): ", r"- `\1`: ", entry) if _named(entry) else f"- {entry}" for entry in entries)


def _named(entry: str) -> bool:
    return re.match(r"^[\w.]+(, [\w.]+)*: ", entry) is not None


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """A function's signature as it is written, without `self`."""
    arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"{node.name}({arguments}){returns}"


def public(nodes: list[ast.stmt], kinds: tuple[type, ...]) -> list:
    """Definitions of some kinds whose names have no leading underscore, in their order."""
    return [node for node in nodes if isinstance(node, kinds) and not node.name.startswith("_")]


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _function(node: ast.FunctionDef, level: int, owner: str = "") -> list[str]:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    shown = node.name if "property" in decorators else signature(node)
    return [f"{'#' * level} {owner}{node.name}", f"```text\n{_wrapped(shown)}\n```", docstring(node)]


def _wrapped(text: str) -> str:
    return text if len(text) <= 110 else "\n".join(textwrap.wrap(text, 110, subsequent_indent="    ", break_on_hyphens=False))


def _class(node: ast.ClassDef) -> list[str]:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    start = next((child for child in node.body if isinstance(child, FUNCTIONS) and child.name == "__init__"), None)
    made = "" if start is None else f"\n{_wrapped(signature(start).replace('__init__', node.name, 1).removesuffix(' -> None'))}"
    parts = [f"### {node.name}", f"```text\nclass {node.name}{f'({bases})' if bases else ''}{made}\n```"]
    parts.append(docstring(node))
    fields = [child for child in node.body if isinstance(child, ast.AnnAssign) and not ast.unparse(child.target).startswith("_")]
    if fields:
        parts.append("\n".join(f"- `{ast.unparse(child)}`" for child in fields))
    for child in public(node.body, FUNCTIONS):
        parts += _function(child, 4, f"{node.name}.")
    return parts


def module_part(path: Path) -> list[str]:
    """One module: its docstring, its classes and functions."""
    parsed = tree(path)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    parts = [f"## {name}", docstring(parsed)]
    for node in public(parsed.body, (ast.ClassDef, *FUNCTIONS)):
        parts += _class(node) if isinstance(node, ast.ClassDef) else _function(node, 3)
    return parts


def api_page(title: str) -> str:
    """One page of docs/api."""
    about, places = PAGES[title]
    paths: list[Path] = []
    for place in places:
        paths += sorted((PACKAGE / place).rglob("*.py")) if (PACKAGE / place).is_dir() else [PACKAGE / place]
    head = title if title == "gandefense" else f"gandefense.{title}"
    parts = [f"# {head}", NOTE, about, "[All pages](../index.md)"]
    for path in paths:
        parts += module_part(path)
    return "\n\n".join(part for part in parts if part) + "\n"


# --- docs/config-keys.md


@functools.cache
def comments(path: Path) -> dict[int, str]:
    """Line number → the comment on it."""
    with path.open("rb") as file:
        tokens = tokenize.tokenize(file.readline)
        return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


class Source:
    """The config classes of the package: their fields with defaults and comments, found by the classes' names."""

    def __init__(self) -> None:
        self.classes: dict[str, tuple[ast.ClassDef, Path]] = {}
        for path in sorted(PACKAGE.rglob("*.py")):
            for node in tree(path).body:
                if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                    self.classes[node.name] = (node, path)

    def comment(self, node: ast.AnnAssign, path: Path) -> str:
        """What the source says about a field: the comment lines above it, and those at its end."""
        found, lines = comments(path), path.read_text(encoding="utf-8").splitlines()
        above: list[str] = []
        line = node.lineno - 1
        while line in found and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, found[line])
            line -= 1
        return " ".join([*above, *(found[n] for n in range(node.lineno, node.end_lineno + 1) if n in found)])

    def keys(self, name: str, prefix: str = "", given: dict[str, str] | None = None) -> list[tuple[str, str, str, str]]:
        """(key, type, default, comment) of every key of a config class, nested ones with dots."""
        node, path = self.classes[name]
        rows = []
        for child in (child for child in node.body if isinstance(child, ast.AnnAssign)):
            key, kind = ast.unparse(child.target), ast.unparse(child.annotation)
            if kind in self.classes:
                rows += self.keys(kind, f"{prefix}{key}.", self._given(child.value))
            else:
                default = (given or {}).get(key) or self._default(child.value)
                rows.append((f"{prefix}{key}", kind, default, self.comment(child, path)))
        return rows

    @staticmethod
    def _made(value: ast.expr | None) -> ast.expr | None:
        """What `field(default_factory=lambda: X)` makes, X; other expressions are left as they are."""
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
            factory = next(word.value for word in value.keywords if word.arg == "default_factory")
            return factory.body if isinstance(factory, ast.Lambda) else factory
        return value

    def _given(self, value: ast.expr | None) -> dict[str, str]:
        """Defaults that differ where a nested config is made, such as limit in DataConfig(limit=1000)."""
        made = self._made(value)
        if not isinstance(made, ast.Call):
            return {}
        names = [ast.unparse(child.target) for child in self.classes[ast.unparse(made.func)][0].body if hasattr(child, "target")]
        words = dict(zip(names, made.args, strict=False)) | {word.arg: word.value for word in made.keywords}
        return {name: self._shown(word) for name, word in words.items()}

    def _default(self, value: ast.expr | None) -> str:
        made = self._made(value)
        if made is None or ast.unparse(made) == "MISSING":
            return "needed"
        if isinstance(made, ast.Name):  # list or dict, or a function of the module
            return {"list": "`[]`", "dict": "`{}`"}.get(made.id, "a list, see the class")
        return self._shown(made)

    @staticmethod
    def _shown(value: ast.expr) -> str:
        text = re.sub(r"(\d+) / 255", r"\1/255", ast.unparse(value)).replace("'", "")
        text = {"None": "null", "True": "true", "False": "false"}.get(text, text)
        return f"`{text}`"


def config_page() -> str:
    """docs/config-keys.md: every key of every config."""
    source = Source()
    parts = [
        "# Config keys",
        NOTE,
        "Every key can stand in a YAML file, nested where it has dots, and on the command line as `key=value`. `null` is "
        "nothing; fractions such as `8/255` are read as numbers; an unknown key is refused with the nearest known one. "
        "Defaults are those of the class; the files in `configs/` change some of them. [All pages](index.md)",
    ]
    for name, (_, tool, folder) in CONFIGS.items():
        parts += [f"## {name}", f"`{tool}`, files in `{folder}`.", _table(source.keys(name))]
    parts += ["## AttackEntry", "One line of a list of attacks in an evaluation.", _table(source.keys("AttackEntry"))]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    lines = ["| key | type | default | is |", "|---|---|---|---|"]
    lines += [f"| `{key}` | {_cell(kind)} | {_cell(default)} | {_cell(about)} |" for key, kind, default, about in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# --- docs/networks.md


RENAMED = {  # whose runs had other names than their configs
    "cifar10/classifier-at-one-step": "cifar10_at_one_step",
    "cifar10/lad-small": "cifar10_lad",
    **{f"cifar10/denoising-small-{seed}": "cifar10_denoise_small" for seed in range(3)},
    **{f"cifar10/plain-small-{seed}": "cifar10_denoise_base_small" for seed in range(3)},
    **{f"cifar10/other-{number}": "cifar10_other" for number in range(3)},
}


def networks_page() -> str:
    """docs/networks.md: every shipped network, as its card says."""
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((PACKAGE / "weights").rglob("*.json"))]
    names = {card["name"] for card in cards}
    lines = ["| name | is | images | parameters | before | trained by | right, clean |", "|---|---|---|---:|---|---|---|"]
    for card in cards:
        own = f"{card['name']}-classifier"
        before = own if own in names else card["recipe"].get("classifier")
        before = f"`{before}`" if before and card["kind"] != "classifier" else "–"
        rows = (card.get("test") or {}).get("rows", [])
        clean = [f"{100 * row['accuracy']:.1f} %, n = {row['n']:,}" for row in rows if row["attack"] == "none"]
        cells = [f"`{card['name']}`", card["kind"], card["data"], f"{card['parameters']:,}", before, _config_of(card)]
        lines.append("| " + " | ".join([*cells, clean[0] if clean else "–"]) + " |")
    about = (
        "What `classifier=`, `restorers=[…]` and `gandefense.load` take by name. Each has a card beside its weights, under "
        "`gandefense/weights`, with its recipe, versions and figures; weights of CelebA are for non-commercial research "
        "only. “Before”: the classifier that a restorer was trained for. “Right, clean”: of test images, where the card holds an "
        "evaluation; [What was measured](measured.md), the [README](../README.md) and [The defences](defences.md) have the rest. "
        "[All pages](index.md)"
    )
    return "\n\n".join(["# Shipped networks", NOTE, about, "\n".join(lines)]) + "\n"


def _config_of(card: dict[str, Any]) -> str:
    """The config file that a card's run, or else the network itself, is named after; what really ran stands in the card."""
    run = (card["recipe"].get("run") or {}).get("name")
    for name in (RENAMED.get(card["name"], run), card["name"].replace("/", "_").replace("-", "_")):
        for kind in ("classifier", "trn", "gan", "joint", "baselines"):
            if (ROOT / "configs" / kind / f"{name}.yaml").is_file():
                return f"`configs/{kind}/{name}.yaml`"
    return "its card's recipe"


# --- all of them


def pages() -> dict[Path, str]:
    """Every generated page: path → text."""
    reference = {DOCS / "api" / f"{title}.md": api_page(title) for title in PAGES}
    return {**reference, DOCS / "config-keys.md": config_page(), DOCS / "networks.md": networks_page()}


def out_of_date() -> dict[Path, str]:
    """The pages that are missing or differ from what the source says, and what they should say."""
    return {path: text for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text}


def main(arguments: list[str]) -> None:
    if arguments not in ([], ["check=true"]):
        raise UserError(f"expected nothing or check=true, got {' '.join(arguments)}")
    late = out_of_date()
    for path in late:
        print(f"{'out of date: ' if arguments else ''}{path.relative_to(ROOT)}")
    if arguments:
        if late:
            print(f"refresh them with: {COMMAND}", file=sys.stderr)
            sys.exit(1)
        return
    (DOCS / "api").mkdir(exist_ok=True)
    for path, text in late.items():
        write_text(path, text)
    print(f"{len(late)} page(s) written")


if __name__ == "__main__":
    run_tool(main, __doc__)
