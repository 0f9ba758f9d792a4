"""The tables of ``docs/outliers.md``, from the results of ``outliers.py``. Nothing is measured."""

from __future__ import annotations

import numpy as np
from digits import ROOT, insert
from scipy import stats

PAGE = ROOT / "docs" / "outliers.md"
OURS, TRUTH = "sklvebm", "true density"


def values(rows, case, name, key):
    """One figure over seeds; empty where it was not measured."""
    cells = (row["cells"].get(name, {}) for row in rows if row["case"] == case)
    return np.array([cell[key] for cell in cells if key in cell])


def mean_and_error(found):
    """Mean over seeds and its standard error."""
    return found.mean(), found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan


def shown(found, digits):
    """Mean ± standard error; nothing where nothing was measured."""
    if not len(found):
        return ""
    mean, error = mean_and_error(found)
    return f"{mean:.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")


def cases_of(rows):
    """Names of the cases, in the order that they were first measured."""
    return list(dict.fromkeys(row["case"] for row in rows))


def detectors_of(rows, key):
    """Names of the detectors that have a figure, in their order; the true density last."""
    names = dict.fromkeys(
        name for row in rows for name, cell in row["cells"].items() if key in cell
    )
    return sorted(names, key=TRUTH.__eq__)


def markdown(head, lines):
    rule = "|" + "---|" * len(head)
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(x)} |" for x in lines)])


def grid(rows, key, digits=3):
    """Cases down, detectors across."""
    names = detectors_of(rows, key)
    lines = [
        [case, *(shown(values(rows, case, name, key), digits) for name in names)]
        for case in cases_of(rows)
    ]
    return markdown(["normal rows against", *names], lines)


def p_value(rows, case, gain):
    """Of no gain, by a t test over splits.

    With the correction of Nadeau and Bengio (2003, Machine Learning 52) for splits that share rows:
    all but those of known density, which are drawn anew.
    """
    row = next(row for row in rows if row["case"] == case)
    shared = 0.0 if TRUTH in row["cells"] else row["n_normal"] / row["n_train"]
    error = gain.std(ddof=1) * np.sqrt(1 / len(gain) + shared)
    return 2 * stats.t.sf(abs(gain.mean()) / error, len(gain) - 1) if error else 1.0


def verdicts(rows, key="roc_auc"):
    """Against each of the others, split by split: where a t test at 5 % puts us ahead or behind."""
    cases, lines = cases_of(rows), []
    for other in detectors_of(rows, "fit_s"):
        if other != OURS:
            gains = {
                case: values(rows, case, OURS, key) - values(rows, case, other, key)
                for case in cases
            }
            clear = [case for case in cases if p_value(rows, case, gains[case]) < 0.05]
            ahead = [case for case in clear if gains[case].mean() > 0]
            behind = [case for case in clear if gains[case].mean() < 0]
            higher = f"{sum(gain.mean() > 0 for gain in gains.values())} of {len(cases)}"
            lines.append([other, higher, "; ".join(ahead), "; ".join(behind)])
    return markdown(["against", "higher", "clearly higher", "clearly lower"], lines)


def sizes(rows):
    """Features and rows of each case: those of its first split."""
    first = {row["case"]: row for row in reversed(rows)}
    keys = ("n_features", "n_train", "n_normal", "n_anomalous")
    lines = [[case, *(str(first[case][key]) for key in keys)] for case in cases_of(rows)]
    head = ["normal rows against", "features", "to train on", "normal, held out", "anomalies"]
    return markdown(head, lines)


def alarms(rows):
    """Held-out normal rows below the offset of "auto", and the range of their share."""
    ranges = []
    for name in detectors_of(rows, "flagged_normal"):
        found = [values(rows, case, name, "flagged_normal").mean() for case in cases_of(rows)]
        ranges.append(f"{name} {100 * min(found):.0f} to {100 * max(found):.0f} %")
    return f"{grid(rows, 'flagged_normal')}\n\nLowest and highest table: {', '.join(ranges)}."


def where(content):
    """Splits, machine, and what was noted about the run."""
    machine, rows = content["machine"], content["rows"]
    splits = {sum(row["case"] == case for row in rows) for case in cases_of(rows)}
    return (
        f"Splits per table: {' to '.join(map(str, sorted(splits)))}; {machine['processor']}, "
        f"threads: {machine['threads']}, Python {machine['python']}, torch {machine['torch']}, "
        f"scikit-learn {machine['scikit-learn']}. {content.get('note', '')}"
    ).strip()


def redraw(content):
    """Put every table into the page, and print it."""
    rows = content["rows"]
    for name, text in {
        "sizes": sizes(rows),
        "auc": grid(rows, "roc_auc"),
        "verdicts": verdicts(rows),
        "precision": grid(rows, "average_precision"),
        "alarms": alarms(rows),
        "found": grid(rows, "flagged_anomalous"),
        "seconds": f"{grid(rows, 'fit_s', 2)}\n\n{where(content)}",
    }.items():
        insert(PAGE, name, text)
        print(f"{name}\n{text}\n")
