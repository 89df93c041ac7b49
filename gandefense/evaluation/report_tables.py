"""The other tables of the report, all of them in their order, and the README's."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gandefense.attacks.level import LEVELS
from gandefense.attacks.threats import THREATS
from gandefense.evaluation import plots
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.tables import LEAST_FOR_DETECTION, MISSING
from gandefense.evaluation.threat_tables import attack_of, headline, restorers_of, threat_tables
from gandefense.evaluation.wording import UNKNOWN, Table, aligned_right, budget, interval, number, share, shown_name, view


def curve_tables(results: dict[str, Any]) -> list[Table]:
    """Accuracy against budget, steps and EOT samples: a row per point, a column per restorer."""
    tables = []
    for kind in plots.KINDS:
        curves = plots.curves_of(results, kind)
        if not curves:
            continue
        found = {name: {point[kind.key]: point for point in curve["points"]} for name, curve in curves.items()}
        values = sorted({value for points in found.values() for value in points})
        rows = [[kind.shown(value), *(interval(points.get(value)) for points in found.values())] for value in values]
        note = "; ".join(f"{', '.join(names)}: {how}" for how, names in _met_alike(curves).items()) + "."
        tables.append(Table(kind.name, kind.title, note, [kind.heading, *map(shown_name, curves)], rows))
    return tables


def _met_alike(curves: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """What was done to a curve's points → the names of those it was done to."""
    alike: dict[str, list[str]] = {}
    for name, curve in curves.items():
        alike.setdefault(f"{plots.described(name, curve)}, {curve['n']} images", []).append(shown_name(name))
    return alike


def detection_table(results: dict[str, Any]) -> Table:
    """AUROC and true-positive rates at thresholds from validation images."""
    rows: list[list[str]] = []
    rates: list[str] = []
    joint = False
    for restorer, found in results["detection"].items():
        rates = list(found["thresholds"])
        flagged = [share(found["false_positive_rate"][rate]) for rate in rates]
        rows.append([restorer, "clean images", UNKNOWN, UNKNOWN, str(found["n_clean"]), UNKNOWN, *flagged])
        for entry in found["attacks"]:
            joint = joint or entry.get("loss") == "joint"
            tpr = [share(entry["tpr"][rate]) for rate in rates]
            rows.append([restorer, attack_of(entry), budget(entry), view(entry), str(entry["n"]), number(entry["auroc"]), *tpr])
    note = (
        "Clean test images against the n attacked ones that the attack changed and with which it had success. Flagged share at "
        "thresholds that were chosen on clean validation images; the row “clean images” is the false-positive rate really met on "
        f"test images. “{UNKNOWN}”: fewer than {LEAST_FOR_DETECTION} images. "
    )
    if joint:
        note += "Attacks with joint loss aimed at classifier and detector together; the others did not know of the detector."
    else:
        note += "No attack here aimed at the detector itself, so these figures are no bound against one that does."
    columns = [f"flagged at {float(rate):.0%}".replace("%", " %") for rate in rates]
    return Table("detection", "Detection", note, ["restorer", "attack", "eps", "view", "n", "AUROC", *columns], rows)


def level_table(results: dict[str, Any]) -> Table:
    """Attack levels that restorers estimate against the true ones."""
    rows = []
    for restorer, entries in results.get("levels", {}).items():
        for entry in entries:
            near = {"accuracy": entry["within_one_step"], "ci95": entry["ci95"]}
            figures = [number(entry["true"], 3), number(entry["estimated"], 3), interval(near)]
            rows.append([restorer, attack_of(entry), budget(entry), view(entry), str(entry["n"]), *figures])
    steps = ", ".join(map(str, LEVELS))
    note = (
        "The restorer's estimate of each perturbation's level, its root mean square on the [-1, 1] scale, over the n changed "
        f"images (of clean images: over all). Within one step: estimate and truth belong to neighbours among {steps}, or to the "
        "same one. L-infinity budgets of 8/255 are levels below 0.07, so that under them an answer of 0 is near too."
    )
    header = ["restorer", "attack", "eps", "view", "n", "true level", "estimated", "within one step"]
    return Table("levels", "Attack levels", note, header, rows)


def four_way_table(results: dict[str, Any]) -> Table:
    """Accuracy with nothing, the detector, the restorer, and both, at the largest false-positive rate asked for."""
    rows, met = [], []
    for restorer, found in results["detection"].items():
        if not found["thresholds"]:
            continue
        rate = max(found["thresholds"], key=float)
        met.append(f"{restorer}: {share(found['false_positive_rate'][rate])}")
        ways = ("none", "detector", "restorer", "both")
        rows.append([restorer, "clean", UNKNOWN, UNKNOWN, *(share(found["clean_accuracy"][rate][way]) for way in ways)])
        for entry in found["attacks"]:
            figures = [share(entry["accuracy"][rate][way]) for way in ways]
            rows.append([restorer, attack_of(entry), budget(entry), view(entry), *figures])
    note = (
        "A flagged image counts as right if the attack changed it, and as wrong if it did not; only meaningful next to the "
        f"false-positive rate on clean test images ({'; '.join(met)}), at the threshold of the largest rate asked for. "
        "“Nothing”: the bare classifier on these very images, which under white_box were made against the whole defence."
    )
    header = ["restorer", "attack", "eps", "view", "nothing", "detector", "restorer", "both"]
    return Table("four_ways", "Detector, restorer, both", note, header, rows)


def restoration_table(results: dict[str, Any]) -> Table:
    """PSNR, SSIM and LPIPS against the clean image, attacked → restored."""
    rows = []
    figures = [("psnr", 2), ("ssim", 3), ("lpips", 3)]
    if results["restoration"] and all("fid" in entry["restored"] for found in results["restoration"].values() for entry in found):
        figures.append(("fid", 1))
    for restorer, entries in results["restoration"].items():
        for entry in entries:
            before, after = entry["attacked"] or {}, entry["restored"]
            pairs = [
                f"{number(before.get(name), digits)} → {number(after[name], digits)}" if after[name] != MISSING else MISSING
                for name, digits in figures
            ]
            rows.append([restorer, attack_of(entry), budget(entry), view(entry), str(entry["n"]), *pairs])
    note = (
        "Against the clean image, attacked → restored, mean over the n changed images (for clean images: over all, so the figure "
        "is what the restorer does to them). PSNR and SSIM by piq; its PSNR ends at 80 dB, for identical images. LPIPS is "
        "“missing” where its AlexNet backbone is not on the machine."
    )
    header = ["restorer", "attack", "eps", "view", "n", "PSNR (dB)", "SSIM", "LPIPS (less is better)"]
    if len(figures) > 3:
        header.append("FID (less is better)")
        note += " FID, by torch-fidelity, compares all images with all clean ones; few images bias it upwards."
    return Table("restoration", "Restoration", note, header, rows)


def cost_table(results: dict[str, Any]) -> Table:
    """Speed, parameters and passes."""
    rows = []
    for restorer, entry in results["cost"].items():
        memory = entry["peak_memory_bytes"]
        passes = f"{entry['forward_passes']:.3g} / {entry['backward_passes']:.3g}"
        peak = [] if memory is None else [f"{memory / 2**20:,.0f} MiB"]
        rows.append([shown_name(restorer), f"{entry['images_per_second']:,.0f}", f"{entry['parameters']:,}", passes, *peak])
    first = next(iter(results["cost"].values()))
    note = (
        f"Restorer and classifier together on clean images, warm, batches of {first['batch_size']}, on {first['device']} with "
        f"{first['threads']} thread(s). The classifier has {first['classifier_parameters']:,} parameters; passes are the "
        "classifier's, per image."
    )
    peak = ["peak memory"] if first["peak_memory_bytes"] is not None else []  # known on a GPU only
    return Table("cost", "Cost", note, ["restorer", "images/s", "parameters", "forward / backward passes", *peak], rows)


def all_tables(results: dict[str, Any]) -> list[Table]:
    """Every table of the report in its order, the headline first; empty ones are left out."""
    tables = [headline(results), *threat_tables(results), *curve_tables(results), detection_table(results)]
    tables += [four_way_table(results), level_table(results), restoration_table(results), cost_table(results)]
    if not plots.available():
        drawable = {kind.name for kind in plots.KINDS} | ({"detection"} if plots.rocs_of(results) else set())
        for table in [table for table in tables if table.name in drawable][:1]:
            table.note += f" {plots.NOT_DRAWN}"
    return [table for table in tables if table.rows]


# What makes rows of different restorers one line. EOT is left out, because only random defences are given it, and with it
# the title.
LINE = ("threat", "view", "attack", "norm", "eps", "steps", "step_size", "restarts", "labels", "loss", "queries", "survivors")


def readme_table(results: dict[str, Any]) -> str:
    """The figures for a README as a Markdown table: a line per attack, a column per restorer; percent [95 % interval]."""
    restorers = restorers_of(results)
    lines: dict[tuple, dict[str, dict[str, Any]]] = {}
    # Every row of a defence has the classifier alone beside it, whose own rows are needed only where there is no defence.
    for restorer in restorers[1:] or restorers:
        met: Counter[tuple] = Counter()
        for row in (row for row in results["rows"] if row["restorer"] == restorer):
            same = tuple(row.get(key) for key in LINE)
            met[same] += 1  # once with EOT and once without are two lines
            lines.setdefault((*same, met[same]), {})[restorer] = row
    table = []
    for rows in sorted(lines.values(), key=lambda rows: [*THREATS].index(_any(rows)["threat"])):
        row = _any(rows)
        bare = {"accuracy": row["undefended_accuracy"], "ci95": row["undefended_ci95"]}
        table.append([_label(list(rows.values())), *(_plain({NO_RESTORER: bare, **rows}.get(name)) for name in restorers)])
    for threat in THREATS:
        if threat in results["worst_case"].get(NO_RESTORER, {}):
            figures = (results["worst_case"].get(name, {}).get(threat) for name in restorers)
            table.append([f"**worst case, {threat}**", *map(_plain, figures)])
    cost = [results["cost"].get(name) for name in restorers]
    first = next(entry for entry in cost if entry is not None)
    threads = "1 CPU thread" if first["threads"] == 1 else f"{first['threads']} CPU threads"
    where = threads if first["device"] == "cpu" else first["device"]
    speeds = (UNKNOWN if entry is None else f"{entry['images_per_second']:,.0f}" for entry in cost)
    table.append([f"images/s, {where}", *speeds])
    header = ["", *("classifier alone" if name == NO_RESTORER else f"`{name}`" for name in restorers)]
    return markdown_table(header, table)


def _any(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return next(iter(rows.values()))


def _plain(figure: dict[str, Any] | None) -> str:
    return interval(figure).replace(" %", "")


def _label(rows: list[dict[str, Any]]) -> str:
    """What a line of the README's table says about its attack."""
    fewest, *_, most = sorted([rows[0], *rows], key=lambda row: row.get("eot_samples", 1))
    if fewest["attack"] == "none":
        return "clean"
    parts = [f"{fewest['threat']} {attack_of(fewest)}, {budget(fewest)}"]
    if fewest["threat"] != "gray_box":
        parts.append(f"view {fewest['view']}" if fewest["threat"] == "white_box" else fewest["view"])
    if most.get("eot_samples", 1) > fewest.get("eot_samples", 1):
        parts.append(f"eot-{most['eot_samples']} where random")
    return ", ".join(parts)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; columns of figures are aligned to the right."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    right = aligned_right(header, rows)
    rule = "|" + "|".join("---:" if flag else "---" for flag in right) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{title} ({count:,})" for title, count in counts.items())


def made(results: dict[str, Any]) -> list[str]:
    """How the figures were made, in lines."""
    how = results["made"]
    return [
        f"command: {how['command']}",
        f"seed {how['seed']}, {how['date']}, {how['seconds']:g} s",
        *([f"attacked images from earlier evaluations: {_listed(how['found'])}"] if how.get("found") else []),
        "versions: " + ", ".join(f"{name} {version}" for name, version in how["versions"].items()),
        *(f"weights of {name}: SHA-256 {digest}" for name, digest in how.get("weights", {}).items()),
    ]
