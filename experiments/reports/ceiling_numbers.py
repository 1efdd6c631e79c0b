"""Numbers of the pages that come from the studies of the limit (`experiments study ceiling`, `study inside`)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.reports.page_text import EMBEDDED, span, table, worded

__all__ = [
    "best_of_foca",
    "distance",
    "inside",
    "margins",
    "margins_by_schedules",
    "one_item",
    "one_item_less",
    "own_places",
    "refinement",
    "seeds",
]

ONE = "calibrated, 1 item"
OURS = ("calibrated", ONE, "calibrated, refined", "fitted solver")


def limit(backend: str) -> Any:
    """The lines of a model in the study of the limit."""
    rows = pd.read_csv(EMBEDDED / "ceiling.csv", keep_default_na=False)
    return rows[rows["backend"] == backend]


def refinement() -> str:
    """Calibrated plans, and the same with refined weights, beside the best published method and the limit."""
    lines: list[list[str]] = []
    for backend in ("digits", "emoji"):
        for budget, members in limit(backend).groupby("full steps"):
            psnr = members.set_index(["method", "setting"])["PSNR (dB)"]
            best = members[~members["method"].isin(OURS) & (members["gain"] == 0)].iloc[0]
            refined: Any = members[(members["method"] == "calibrated, refined") & (members["setting"] == "")].iloc[0]
            gain = f"{refined['gain']:.1f} [{refined['gain low']:.1f}, {refined['gain high']:.1f}]"
            other = f"{best['method']} {best['PSNR (dB)']:.1f} ({best['setting']})"
            values = [f"{psnr[title, '']:.1f}" for title in ("calibrated", "calibrated, refined")]
            solver = f"{psnr['fitted solver', '']:.1f}" if ("fitted solver", "") in psnr.index else "-"
            lines.append([backend, str(budget), other, *values, gain, solver])
    heads = ["model", "full steps", "best published", "calibrated", "refined", "gain of refined", "fitted solver"]
    return table(heads, lines)


def seeds() -> str:
    """Refined plans of three calibration sets at 8 full steps."""
    lines = []
    for backend in ("digits", "emoji"):
        rows = limit(backend)
        rows = rows[(rows["method"] == "calibrated, refined") & (rows["full steps"] == 8)]
        lines.append(f"{backend} {worded(list(rows['PSNR (dB)']))}")
    return "; ".join(lines)


def psnr_of(backend: str, title: str) -> dict[int, float]:
    """PSNR of a line of that study by full steps; the first line where there are several."""
    rows = limit(backend)
    return rows[rows["method"] == title].drop_duplicates("full steps").set_index("full steps")["PSNR (dB)"].to_dict()


def distance(one: str, other: str, digits: int = 1) -> str:
    """The largest distance of two lines of that study."""
    found = []
    for backend in ("digits", "emoji"):
        first, second = psnr_of(backend, one), psnr_of(backend, other)
        found += [abs(first[budget] - second[budget]) for budget in first.keys() & second.keys()]
    return f"{max(found):.{digits}f} dB"


def one_item(setting: str = "") -> str:
    """How much of the calibrated plan's gain over the best published method plans of one calibration item have."""
    return " and ".join(f"{100 * one / all_items:.0f} % ({model})" for model, one, all_items in single_gains(setting))


def one_item_less() -> str:
    """By how many dB the weights of one item are below those of all, on the same full steps."""
    less = (f"{all_items - one:.1f}" for _, one, all_items in single_gains("full steps of the plan"))
    return " and ".join(less) + " dB"


def single_gains(setting: str) -> list[tuple[str, float, float]]:
    """Per model the gain of plans of one item over the best published method, and that of the plan of all items."""
    found = []
    for backend in ("digits", "emoji"):
        rows = limit(backend)
        keys = zip(rows["full steps"], rows["method"], rows["setting"], strict=True)
        gains = dict(zip(keys, rows["gain"], strict=True))
        if (8, ONE, setting) in gains:
            found.append((backend, gains[8, ONE, setting], gains[8, "calibrated", ""]))
    return found


def best_of_foca(*budgets: int) -> list[float]:
    """FoCa at its best settings on the digits model."""
    rows = limit("digits")
    return list(rows[(rows["method"] == "FoCa") & rows["full steps"].isin(budgets)]["PSNR (dB)"])


def margins(backend: str) -> str:
    """How far the refined plan is above the best published method: the least and the most over full steps."""
    rows = limit(backend)
    return span(rows[(rows["method"] == "calibrated, refined") & (rows["setting"] == "")]["gain"])


def margins_by_schedules() -> str:
    """How far the refined plan is above the best published method, by the schedules that this one may have."""
    rows, lines = pd.read_csv(EMBEDDED / "margins.csv", keep_default_na=False), []
    for _, members in rows.groupby(["model", "full steps"]):
        backend, budget = members.iloc[0]["model"], members.iloc[0]["full steps"]
        every = limit(str(backend))
        every = every[(every["full steps"] == budget) & (every["method"] == "calibrated, refined")]
        row: Any = every[every["setting"] == ""].iloc[0]
        cells = [f"{row['PSNR (dB)']:.1f}"]
        for schedules in ("intervals", "intervals or even"):
            found = members[members["schedules"] == schedules]
            if found.empty:
                cells.append("none has as many")
                continue
            other: Any = found.iloc[0]
            best = f"{other['best published']} {other['PSNR (dB)']:.1f} ({other['setting']})"
            cells.append(f"{other['gain']:.1f} [{other['gain low']:.1f}, {other['gain high']:.1f}]: {best}")
        cells.append(f"{row['gain']:.1f} [{row['gain low']:.1f}, {row['gain high']:.1f}]")
        lines.append([str(backend), str(budget), *cells])
    heads = ["model", "full steps", "refined", "over intervals", "over intervals and even", "over all schedules"]
    return table(heads, lines)


def inside() -> str:
    """Refined plans inside the models beside the best three forecasters on their full steps."""
    rows, lines = pd.read_csv(EMBEDDED / "inside.csv", keep_default_na=False, dtype=str), []
    for _, members in rows.groupby(["model", "scope"]):
        ours, others = members.iloc[0], members.iloc[1:4]
        cells = [f"{float(ours['PSNR (dB)']):.1f} [{float(ours['low']):.1f}, {float(ours['high']):.1f}]"]
        for _, row in others.iterrows():
            name = f"{row['method']} ({row['setting']})" if row["setting"] else row["method"]
            least, most = (float(row[end]) for end in ("gain low", "gain high"))
            cells.append(
                f"{name} {float(row['PSNR (dB)']):.1f}: {float(row['gain of the plan']):.1f} [{least:.1f}, {most:.1f}]"
            )
        lines.append([ours["model"], ours["scope"], *cells])
    return table(["model", "scope", "calibrated, refined", "best forecaster: gain", "second", "third"], lines)


def own_places() -> str:
    """Searched full steps that all items share beside those of each item's own."""
    rows, lines = pd.read_csv(EMBEDDED / "places_own.csv", keep_default_na=False, dtype=str), []
    for _, members in rows.groupby(["model", "full steps", "method"], sort=False):
        found = zip(members["places"], members["PSNR (dB)"], strict=True)
        psnr = {str(places): f"{float(value):.1f}" for places, value in found}
        own: Any = members[members["places"] == "own"].iloc[0]
        over, least, most = (f"{float(own[name]):.1f}" for name in ("over shared", "from", "to"))
        keys = [own["model"], own["full steps"], own["method"]]
        lines.append([*keys, psnr["eased"], psnr["shared"], f"{psnr['own']} (+{over} [{least}, {most}])"])
    return table(["model", "full steps", "method", "eased", "shared", "each its own"], lines)
