"""The tables of the report as text in cells, for every way of showing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gandefense.attacks.threats import THREATS, VIEWS
from gandefense.evaluation.checks import percent
from gandefense.evaluation.settings import NO_RESTORER
from gandefense.evaluation.tables import MISSING

UNKNOWN = "–"


@dataclass
class Table:
    """A table under its own heading; the cells are text already."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


def share(value: float | None) -> str:
    """A fraction as a percentage."""
    return UNKNOWN if value is None else percent(value)


def interval(figure: dict[str, Any] | None) -> str:
    """Accuracy with its 95 % interval, "61.2 % [58.1, 64.2]"."""
    if figure is None or figure["accuracy"] is None:
        return UNKNOWN
    low, high = figure["ci95"]
    return f"{percent(figure['accuracy'])} [{100 * low:.1f}, {100 * high:.1f}]"


def number(value: Any, digits: int = 3) -> str:
    """A number with a fixed number of decimals; text is passed on."""
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def budget(row: dict[str, Any]) -> str:
    """eps as "8/255", a noise level as it is, nothing for clean images."""
    if row["attack"] == "none":
        return UNKNOWN
    return f"{row['eps']:g}" if row["norm"] == "noise" else f"{row['eps'] * 255:.3g}/255"


def _view(row: dict[str, Any]) -> str:
    return row["view"] if row["threat"] == "white_box" else UNKNOWN


def shown_name(restorer: str) -> str:
    """A restorer's name for readers."""
    return "none (classifier alone)" if restorer == NO_RESTORER else restorer


def headline(results: dict[str, Any]) -> Table:
    """For the classifier alone and each restorer: clean, worst gray_box, worst white_box, speed."""
    rows = []
    clean = {row["restorer"]: row for row in results["rows"] if row["attack"] == "none"}
    clean[NO_RESTORER] = results["classifier"]
    for restorer in [NO_RESTORER, *(name for name in clean if name != NO_RESTORER)]:
        worst = results["worst_case"].get(restorer, {})
        speed = results["cost"][restorer]["images_per_second"]
        figures = [interval(figure) for figure in (clean[restorer], worst.get("gray_box"), worst.get("white_box"))]
        rows.append([shown_name(restorer), *figures, f"{speed:,.0f}"])
    whose = (
        f"{results['data']['name']} test images" if results["data"]["file"] is None else f"images of {results['data']['file']}"
    )
    note = (
        f"Accuracy on {results['data']['n']} {whose} with its 95 % interval. Worst case: an image "
        "counts only if it is right clean and under every attack of the threat (a white_box attacker may also use the gray_box "
        "attacks); noise is left out, because it is no adversary. Speed is that of clean images."
    )
    return Table("Do they hold?", note, ["restorer", "clean", "worst gray_box", "worst white_box", "images/s"], rows)


def threat_tables(results: dict[str, Any]) -> list[Table]:
    """One table per threat, a row per restorer and attack."""
    tables = []
    for threat in dict.fromkeys(row["threat"] for row in results["rows"]):
        rows = []
        for row in (row for row in results["rows"] if row["threat"] == threat):
            lead = [row["restorer"], *([row["view"]] if threat == "white_box" else []), row["title"], budget(row)]
            steps = f"{row['steps']} × {row['restarts']}" if row["norm"] == "linf" and row["attack"] != "none" else UNKNOWN
            rows.append([*lead, steps, str(row["n"]), interval(row), share(row["undefended_accuracy"])])
        view = ["view"] if threat == "white_box" else []
        header = ["restorer", *view, "attack", "eps", "steps × restarts", "n", "accuracy", "classifier alone"]
        note = f"{THREATS[threat].capitalize()}. "
        if threat == "white_box":
            seen = dict.fromkeys(row["view"] for row in results["rows"] if row["threat"] == threat)
            note += (
                "Views: "
                + "; ".join(f"{view}: {VIEWS[view]}" for view in seen)
                + ". “Classifier alone” met the same attack made against itself."
            )
        else:
            note += "The attacks are made against the classifier, and every restorer meets the same attacked images."
        tables.append(Table(threat, note, header, rows))
    return tables


def detection_table(results: dict[str, Any]) -> Table:
    """AUROC and true-positive rates at thresholds from validation images."""
    rows: list[list[str]] = []
    rates: list[str] = []
    for restorer, found in results["detection"].items():
        rates = list(found["thresholds"])
        measured = found["false_positive_rate"]
        rows.append(
            [
                restorer,
                "clean images",
                UNKNOWN,
                UNKNOWN,
                str(found["n_clean"]),
                UNKNOWN,
                *(share(measured[rate]) for rate in rates),
            ]
        )
        for entry in found["attacks"]:
            tpr = [share(entry["tpr"][rate]) for rate in rates]
            rows.append([restorer, entry["title"], budget(entry), _view(entry), str(entry["n"]), number(entry["auroc"]), *tpr])
    note = (
        "Clean test images against the n attacked ones that the attack changed and with which it had success. Flagged share at "
        "thresholds that were chosen on clean validation images; the row “clean images” is the false-positive rate really met on "
        "test images. No attack here aimed at the detector itself, so these figures are no bound against one that does."
    )
    columns = [f"flagged at {float(rate):.0%}".replace("%", " %") for rate in rates]
    return Table("Detection", note, ["restorer", "attack", "eps", "view", "n", "AUROC", *columns], rows)


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
            rows.append(
                [restorer, entry["title"], budget(entry), _view(entry), *(share(entry["accuracy"][rate][way]) for way in ways)]
            )
    note = (
        "A flagged attacked image counts as right, a flagged clean one as wrong; only meaningful next to the false-positive rate "
        f"on clean test images ({'; '.join(met)})."
    )
    return Table(
        "Detector, restorer, both", note, ["restorer", "attack", "eps", "view", "nothing", "detector", "restorer", "both"], rows
    )


def restoration_table(results: dict[str, Any]) -> Table:
    """PSNR, SSIM and LPIPS against the clean image, attacked → restored."""
    rows = []
    for restorer, entries in results["restoration"].items():
        for entry in entries:
            before, after = entry["attacked"] or {}, entry["restored"]
            pairs = [
                f"{number(before.get(name), digits)} → {number(after[name], digits)}" if after[name] != MISSING else MISSING
                for name, digits in (("psnr", 2), ("ssim", 3), ("lpips", 3))
            ]
            rows.append([restorer, entry["title"], budget(entry), _view(entry), str(entry["n"]), *pairs])
    note = (
        "Against the clean image, attacked → restored, mean over the n changed images (for clean images: over all, so the figure "
        "is what the restorer does to them). PSNR and SSIM by piq; its PSNR ends at 80 dB, for identical images. LPIPS is "
        "“missing” where its AlexNet backbone is not on the machine."
    )
    return Table(
        "Restoration", note, ["restorer", "attack", "eps", "view", "n", "PSNR (dB)", "SSIM", "LPIPS (less is better)"], rows
    )


def cost_table(results: dict[str, Any]) -> Table:
    """Speed, parameters and passes."""
    rows = []
    for restorer, entry in results["cost"].items():
        memory = entry["peak_memory_bytes"]
        passes = f"{entry['forward_passes']:.3g} / {entry['backward_passes']:.3g}"
        peak = UNKNOWN if memory is None else f"{memory / 2**20:,.0f} MiB"
        rows.append([shown_name(restorer), f"{entry['images_per_second']:,.0f}", f"{entry['parameters']:,}", passes, peak])
    first = next(iter(results["cost"].values()))
    note = (
        f"Restorer and classifier together on clean images, warm, batches of {first['batch_size']}, on {first['device']} with "
        f"{first['threads']} thread(s). The classifier has {first['classifier_parameters']:,} parameters; passes are the "
        "classifier's, per image."
    )
    return Table("Cost", note, ["restorer", "images/s", "parameters", "forward / backward passes", "peak memory"], rows)


def all_tables(results: dict[str, Any]) -> list[Table]:
    """Every table of the report in its order; empty ones are left out."""
    tables = [headline(results), *threat_tables(results), detection_table(results), four_way_table(results)]
    tables += [restoration_table(results), cost_table(results)]
    return [table for table in tables if table.rows]


def made(results: dict[str, Any]) -> list[str]:
    """How the figures were made, in lines."""
    how = results["made"]
    return [
        f"command: {how['command']}",
        f"seed {how['seed']}, {how['date']}, {how['seconds']:g} s",
        "versions: " + ", ".join(f"{name} {version}" for name, version in how["versions"].items()),
    ]
