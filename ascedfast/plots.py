# SPDX-License-Identifier: MIT
"""Figures of a report, in matplotlib (``ascedfast[demo]``)."""

import base64
import io

import numpy as np
from matplotlib.figure import Figure

from ascedfast.report import Report, RowReport


def curves(row: RowReport) -> Figure:
    """Mean dynamics a step inside and outside the mask, and their change (acceleration)."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    values = row.curves
    for name, style in (("inside", "-"), ("outside", "--"), ("all", ":")):
        if np.isfinite(values[name]).any():
            top.plot(values["step"], values[name], style, label=f"{name} the mask" if name != "all" else "everywhere")
            if name != "all" and len(values["step"]) > 1:
                bottom.plot(values["step"][1:], np.diff(values[name]), style)
    top.set_ylabel("mean |change of x0_hat|")
    bottom.set_ylabel("acceleration")
    bottom.set_xlabel("executed step")
    bottom.axhline(0, linewidth=0.5, color="grey")
    _mark_t_c(row, top, bottom)
    if values["step"]:
        top.legend(loc="best", fontsize="small")
    return figure


def abnormal_histogram(report: Report) -> Figure:
    """Share of abnormal locations at each recorded step, over all rows: the phases of the run."""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    steps: dict[int, list[float]] = {}
    for row in report:
        for step, share in row.abnormal:
            steps.setdefault(step, []).append(share)
    axes.bar(list(steps), [100 * float(np.mean(shares)) for shares in steps.values()], color="tab:blue")
    axes.set_xlabel("executed step")
    axes.set_ylabel("abnormal locations, %")
    if len(report):
        _mark_t_c(report[0], axes)
    return figure


def _mark_t_c(row: RowReport, *all_axes) -> None:
    if row.plan.reason is None:
        for axes in all_axes:
            axes.axvline(row.plan.t_c - 0.5, color="tab:red", linewidth=1)
        all_axes[0].annotate(
            "correction", (row.plan.t_c - 0.5, 1), xycoords=("data", "axes fraction"), fontsize="small", va="bottom"
        )


def svg_uri(figure: Figure) -> str:
    """The figure as a ``data:`` address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
