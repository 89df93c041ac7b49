"""The headline of the report, and its tables by threat."""

from __future__ import annotations

from typing import Any

from gandefense.attacks.threats import THREATS, VIEWS
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.wording import UNKNOWN, Table, budget, gain, interval, share, shown_name, view

SURVIVORS = " (on survivors)"


def restorers_of(results: dict[str, Any]) -> list[str]:
    """The classifier alone, then every restorer in the order of the rows."""
    return list(dict.fromkeys([NO_RESTORER, *(row["restorer"] for row in results["rows"])]))


def attack_of(row: dict[str, Any]) -> str:
    """An attack's title, which names its loss and EOT samples, and whether it met survivors only."""
    return row["title"] + (SURVIVORS if row.get("survivors") else "")


def _tried(row: dict[str, Any]) -> str:
    """The same, with how many images it met where these were survivors."""
    return f"{row['title']} (on {row['tried']} survivors)" if row.get("survivors") and "tried" in row else attack_of(row)


def headline(results: dict[str, Any]) -> Table:
    """For the classifier alone and each restorer: clean, the worst case of each threat, what it gains, speed."""
    clean = {row["restorer"]: row for row in results["rows"] if row["attack"] == "none"}
    clean[NO_RESTORER] = results["classifier"]
    worst, order = results["worst_case"], restorers_of(results)
    threats = [threat for threat in THREATS if threat != "black_box" or threat in worst.get(NO_RESTORER, {})]
    bare = worst.get(NO_RESTORER, {}).get("white_box", {}).get("accuracy")
    gains = [gain(worst.get(restorer, {}).get("white_box"), bare) for restorer in order]
    tested = any(text != UNKNOWN for text in gains)
    rows, shares = [], []
    for restorer, gained in zip(order, gains, strict=True):
        figures = [clean.get(restorer), *(worst.get(restorer, {}).get(threat) for threat in threats)]
        speed = results["cost"].get(restorer, {}).get("images_per_second")
        speed = UNKNOWN if speed is None else f"{speed:,.0f}"
        rows.append([shown_name(restorer), *map(interval, figures), *([gained] if tested else []), speed])
        shares.append([None if figure is None else figure["accuracy"] for figure in figures])
    whose = (
        f"{results['data']['name']} test images" if results["data"]["file"] is None else f"images of {results['data']['file']}"
    )
    note = (
        f"Accuracy on {results['data']['n']} {whose} with its 95 % interval. Worst case: an image counts only if it is right "
        "clean and under every attack of the threat (who knows the defence, white_box, may also use the attacks of the other "
        "threats); noise is left out, because it is no adversary, and L2 attacks, whose budget is another, and other threats' "
        "attacks beyond the largest budget of this threat's own. "
    )
    if tested:
        note += "Gain: in the worst white_box case over the classifier alone, with McNemar's exact test on the same images. "
    if any(results.get("randomised", {}).values()):
        note += "In the worst cases a random defence must be right each time that an image is handed to it. "
    note += "Speed is that of clean images."
    header = [
        "restorer",
        "clean",
        *(f"worst {threat}" for threat in threats),
        *(["white_box gain"] if tested else []),
        "images/s",
    ]
    bars = {column + 1: list(values) for column, values in enumerate(zip(*shares, strict=True))}
    return Table("headline", "Do they hold?", note, header, rows, bars)


def _steps(row: dict[str, Any]) -> str:
    """How long an attack went on: steps × restarts, or queries."""
    if row.get("queries") is not None:
        return f"{row['queries']:,} queries"
    return f"{row['steps']} × {row['restarts']}" if row["steps"] else UNKNOWN


def threat_tables(results: dict[str, Any]) -> list[Table]:
    """One table per threat, a row per restorer and attack; what a column means is said where it is met first."""
    tables: list[Table] = []
    for threat in THREATS:
        if rows := [row for row in results["rows"] if row["threat"] == threat]:
            met = {column for table in tables for column in table.header}
            tables.append(_threat_table(threat, rows, met))
    return tables


def _threat_table(threat: str, found: list[dict[str, Any]], met: set[str]) -> Table:
    columns = {
        "restorer": [row["restorer"] for row in found],
        "view": [view(row) for row in found],
        "attack": [_tried(row) for row in found],
        "eps": [budget(row) for row in found],
        "steps × restarts": [_steps(row) for row in found],
        "n": [str(row["n"]) for row in found],
        "accuracy": [interval(row) for row in found],
        "right each time": [share(row.get("resubmitted_accuracy")) for row in found],
        "classifier alone": [share(row["undefended_accuracy"]) for row in found],
        "gain": [gain(row, row["undefended_accuracy"], unit="") for row in found],
    }
    # A column that would say nothing is left out, and n, where it is always the same, is said in the note.
    alike = columns["n"][0]
    for name in ("view", "right each time", "gain", "n"):
        if set(columns[name]) == {alike if name == "n" else UNKNOWN}:
            del columns[name]
    shares = {[*columns].index("accuracy"): [row["accuracy"] for row in found]}
    rows = [list(cells) for cells in zip(*columns.values(), strict=True)]
    notes = [_threat_note(threat, found), *_attack_notes(found), *_column_notes(found, set(columns) - met)]
    note = " ".join([*notes, *([] if "n" in columns else [f"Every figure is of {alike} images."])])
    return Table(threat, threat, note, list(columns), rows, shares)


def _threat_note(threat: str, found: list[dict[str, Any]]) -> str:
    note = f"{THREATS[threat].capitalize()}. "
    if threat == "white_box":
        seen = [name for name in dict.fromkeys(row["view"] for row in found) if name in VIEWS]
        note += "Views: " + "; ".join(f"{name}: {VIEWS[name]}" for name in seen)
        return note + ". “Classifier alone” met the same attack made against itself."
    if threat == "black_box":
        return note + (
            "View “transfer: NAME”: the examples were made against the classifier NAME, and everyone meets the same ones; "
            "“query”: the attack asked the pipeline that it stands next to."
        )
    return note + "The attacks are made against the classifier, and every restorer meets the same attacked images."


def _attack_notes(found: list[dict[str, Any]]) -> list[str]:
    """What the words in these attacks' titles mean."""
    losses = {row.get("loss") for row in found}
    notes = []
    if "margin" in losses:
        notes.append("Margin: the loss is the distance between the logits, which no scale of them can blunt.")
    if "joint" in losses:
        notes.append("Joint: the attack aims at classifier and detector together, and accuracy is that of the classifier.")
    if any(row.get("eot_samples", 1) > 1 for row in found):
        notes.append("eot-N: gradients averaged over N draws at every step.")
    if any(row.get("survivors") for row in found):
        notes.append(
            "On survivors: only images that stood after the attacks listed before were attacked, and the others count as broken, "
            "so that this accuracy is cumulative."
        )
    return notes


def _column_notes(found: list[dict[str, Any]], columns: set[str]) -> list[str]:
    """What a reader has to know of these columns."""
    notes = []
    if "right each time" in columns:
        times = max(row.get("resubmissions") or 1 for row in found)
        notes.append(
            f"Where a defence is random, accuracy is the mean over {times} submissions of each image, and “right each time” "
            "counts images that were right in all of them: an attacker who may try again meets that figure."
        )
    if "gain" in columns:
        notes.append("Gain: points over the classifier alone, with McNemar's exact test on the same images.")
    return notes
