"""The figures as a table for people and as JSON for programs."""

from __future__ import annotations

import itertools
from typing import Any

from bench.goals import judge
from bench.series import SERVICE, Series, figure

_HEADERS = ("", "median", "least – most", "persistd is", "goal", "beside it")
Row = tuple[str, ...]


def show(series: list[Series]) -> str:
    """Every figure, and how the service's stands to the others' and to its goal."""
    lines: list[Row] = []
    for (sink, workload), group in itertools.groupby(series, key=lambda one: (one.sink, one.workload)):
        lines.append((f"{sink}: {workload}",))
        for measure, same in itertools.groupby(group, key=lambda one: one.measure):
            members = list(same)
            subject = next((one for one in members if one.contender == SERVICE), None)
            lines.extend(_line(measure, one, subject) for one in members)
    widths = [max(len(row[place]) for row in [_HEADERS, *lines] if len(row) > 1) for place in range(len(_HEADERS))]
    aligned = [
        row[0]
        if len(row) == 1
        else "  ".join(
            cell.ljust(width) if place in (0, 4, 5) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [_HEADERS, *lines]
    ]
    return "\n".join(aligned)


def _line(measure: str, one: Series, subject: Series | None) -> Row:
    verdict = judge(one) if one is subject or subject is None else judge(subject, one)
    beside = "" if one is subject or subject is None else f"{verdict.value:.2f} ×"
    spread = f"{figure(min(one.values))} – {figure(max(one.values))}" if len(one.values) > 1 else ""
    notes = ", ".join(f"{name} {figure(value)}" for name, value in one.notes.items() if "generator" not in name)
    return (f"  {measure}, {one.contender}", f"{figure(one.median)} {one.unit}", spread, beside, verdict.text, notes)


def export(series: list[Series]) -> list[dict[str, Any]]:
    """For JSON: every value, the medians, the ratios and the goals."""
    found = []
    for one in series:
        others = [other for other in series if other.key == one.key and other is not one]
        verdicts = [judge(one), *(judge(one, other) for other in others)] if one.contender == SERVICE else []
        found.append(
            {
                "sink": one.sink,
                "workload": one.workload,
                "measure": one.measure,
                "contender": one.contender,
                "unit": one.unit,
                "median": one.median,
                "values": one.values,
                "notes": one.notes,
                "ratios": {verdict.versus: verdict.value for verdict in verdicts if verdict.versus},
                "goals": [
                    {
                        "versus": verdict.versus,
                        "value": verdict.value,
                        "goal": str(verdict.goal),
                        "met": verdict.goal.met(verdict.value),
                    }
                    for verdict in verdicts
                    if verdict.goal
                ],
            }
        )
    return found
