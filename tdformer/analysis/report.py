"""Writes the report of an analysis: one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from tdformer.analysis.page_sections import Figure, Section, Table, render_page, write_figures
from tdformer.analysis.propositions import masked_variance_bound, processed_variance
from tdformer.pages import heatmaps, self_contained, svg_charts
from tdformer.pages.svg_charts import Curve

GENERATOR = "tdformer analyze"
REPORT, FIGURES = "report.html", "figures"
WHO = {"network": "this network", "baseline": "the baseline"}


def write_report(analysis: dict[str, Any], folder: Path) -> Path:
    """Write the report into a folder, over an earlier one, and its figures as SVG files. Raises UserError."""
    path, sections = folder / REPORT, sections_of(analysis)
    check_replaceable(folder)
    self_contained.write(path, _render(analysis, sections), "--out")
    write_figures(sections, folder / FIGURES)
    return path


def check_replaceable(folder: Path) -> None:
    """Raise UserError if another file is where write_report would write."""
    self_contained.check_replaceable(folder / REPORT, GENERATOR, "--out")


def sections_of(analysis: dict[str, Any]) -> list[Section]:
    """Return the parts of an analysis in the order of the report."""
    return [SECTIONS[name](analysis["parts"][name]) for name in SECTIONS if name in analysis["parts"]]


def _render(analysis: dict[str, Any], sections: list[Section]) -> str:
    data = analysis["data"]
    against = f" beside {analysis['baseline']['name']}" if analysis["baseline"] else ""
    return render_page(
        f"Analysis of {analysis['network']['name']}{against}",
        "; ".join(
            [f"{data['samples']:,} of the {data['of']:,} samples of {data['location']}, at {data['image_size']} pixels", *analysis["notes"]]
        ),
        sections,
        GENERATOR,
        f"Made by {GENERATOR}. The numbers are in analysis.json beside this page, the figures in the folder {FIGURES}.",
    )


# --- the parts -----------------------------------------------------------------------------------------------


def _topdown_use(part: dict[str, Any]) -> Section:
    tables, figures = [], []
    for who, found in part.items():
        rows = [
            [
                name,
                f"{a['top1']:.2f} %",
                f"{a['change']:+.2f} ({a['change_low']:+.2f} to {a['change_high']:+.2f})",
                f"{a['agreement']:.2f} %",
            ]
            for name, a in found["answers"].items()
        ]
        tables.append(Table([f"top-down spikes of {WHO[who]}", "top-1", "change (95 % interval)", "same answer"], rows))
        currents = [[name, _number(c["topdown"]), _number(c["bottom_up"]), _number(c["ratio"])] for name, c in found["currents"].items()]
        tables.append(Table(["attention", "top-down current (RMS)", "bottom-up current (RMS)", "ratio"], currents))
        place, variance = found["map"], found["variance"]
        tables.append(
            Table(
                ["what flows", ""],
                [
                    ["firing rate of the top-down spikes", f"{100 * found['firing_rate']:.2f} %"],
                    ["map under the clamp / within / above", " / ".join(f"{100 * place[at]:.1f} %" for at in ("below", "inside", "above"))],
                    ["variance of X, and of Y = X · clamp(M)", f"{_number(variance['X_variance'])}, {_number(variance['Y_variance'])}"],
                    ["proposition B.4 for Var(Y)", _number(variance["proposition_b_4"])],
                    ["bound of proposition 4.1 for Var(Y), X of spikes", _number(variance["bound_of_proposition_4_1"])],
                ],
            )
        )
        figures += _variances(found, WHO[who])
    return Section(
        "Is the top-down path used?",
        "The top-down signal controls the attention of later time steps, and raises accuracy.",
        "At evaluation the top-down spikes S_td are replaced, and the answers are compared sample by sample with those of the unchanged "
        "network. Currents are root mean squares before the BatchNorm of the keys (CM1), values (CM2) or the input (CM3).",
        "The network is not trained again without the path: what it could learn without it, a baseline tells. Random spikes fire as often "
        "as the real ones at each time step. “Attention silent” says what the controlled attentions are worth: top-down spikes act through "
        "them alone, and can matter no more.",
        tables,
        figures,
    )


def _variances(found: dict[str, Any], who: str) -> list[Figure]:
    """Draw proposition 4.1's bound and proposition B.4 over the rate of spikes, and what was measured. Nothing for a negative clamp."""
    lower, upper = found["clamp"]
    if lower < 0:
        return []
    rates = [number / 50 for number in range(51)]
    rate, measured = found["variance"]["rate"], found["variance"]
    lines = [
        Curve([(f, masked_variance_bound(f, upper, lower)) for f in rates], "A", "c0", "bound of proposition 4.1", is_mean=True),
        Curve([(f, processed_variance(f) * f * (1 - f)) for f in rates], "B", "c1", "proposition B.4", is_mean=True),
        Curve([(rate, measured["Y_variance"])], "C", "c2", "measured Var(Y)", is_mean=True),
        Curve([(rate, measured["X_variance"])], "D", "c3", "measured Var(X)", is_mean=True),
    ]
    picture = svg_charts.curves(lines, "share of X above 0")
    named = ", ".join(f"{line.tag} {line.title}" for line in lines)
    return [Figure(f"variances of {who} ({named})", picture)] if picture else []


def _mutual_information(part: dict[str, Any]) -> Section:
    names = {
        "spikes": "spikes: plug-in, per unit",
        "gaussian": "features: canonical correlations",
        "ksg": "features: nearest neighbours",
    }
    figures, rows = [], []
    who_measured = [who for who in WHO if who in part]
    for stage in part["network"]:
        for estimator, name in names.items():
            cells = [f"{stage}, {name}"]
            for who in who_measured:
                found = part[who].get(stage)
                cells.append(_interval(found[estimator]["mean"]) if found else "")
                if found:
                    picture = heatmaps.matrix(found[estimator]["matrix"], "bits")
                    figures.append(Figure(f"{stage}, {name}, {WHO[who]}", picture))
            if "difference" in part:
                cells.append(_interval(part["difference"][stage][estimator]) if stage in part["difference"] else "")
            rows.append(cells)
    head = [
        "mean over pairs of time steps, in bits",
        *(WHO[who] for who in who_measured),
        *(["difference"] if "difference" in part else []),
    ]
    return Section(
        "Mutual information across time steps",
        "Figure 1: feedback raises the mutual information of features between time steps.",
        "I(H(t); H(s)) over images, H(t) the output of a stage at time step t. Spikes: the mean over units of I(a(t); a(s)), a = 1 where "
        "H > 0, from counts; on the diagonal the entropy. Features: means over positions in their first principal components, by "
        "canonical correlations (10 components, exact for Gaussians) and by 4 nearest neighbours (3 components; Kraskov et al. 2004).",
        "The plug-in estimate is corrected by Miller and Madow. From every estimate its value on shuffled pairs of images is subtracted. "
        "95 % intervals are from 40 random halves of the images. They say nothing of other seeds: two trainings of one setting may differ "
        "by more, also in stages that feedback does not reach.",
        [Table(head, rows)],
        figures,
    )


def _time_gradients(part: dict[str, Any]) -> Section:
    figures = []
    stages = list(part["network"]["norms"]["without feedback"])
    for stage in stages:
        lines: list[Curve] = []
        for who, found in part.items():
            for way, norms in found["norms"].items():
                if stage in norms:
                    points = [(step, norm) for step, norm in enumerate(norms[stage], start=1)]
                    tag = chr(ord("A") + len(lines))
                    lines.append(Curve(points, tag, f"c{len(lines)}", f"{WHO[who]}, {way}", is_mean=True))
        picture = svg_charts.curves(lines, "time step")
        if picture is not None:
            named = ", ".join(f"{line.tag} {line.title}" for line in lines)
            figures.append(Figure(f"{stage}: norm of dL/dH(t) per image ({named})", picture))
    rows = []
    for who, found in part.items():
        theorem = found["theorem"]
        sensitivities = (theorem[name] for name in ("sensitivity", "measured_inside", "measured_outside"))
        rows.append([WHO[who], f"{100 * theorem['inside_window']:.1f} %", *map(_number, sensitivities)])
    return Section(
        "Gradients along time",
        "Theorem 4.3: without feedback the sensitivity dH(t+1)/dH(t) is 0 in the window around the threshold, and 1 - 1/tau elsewhere; "
        "feedback adds a way for the gradient.",
        "The loss is the cross-entropy of the last segment. Its gradient reaches earlier segments through carried membranes and through "
        "the top-down spikes; “without feedback” no gradient passes the latter. The window is (½, 1½) of the threshold.",
        "The theorem is about a rectangular surrogate and a soft reset: 0 in the window. The network has a sigmoid surrogate and a hard "
        "reset without gradient, for which the sensitivity of a neuron along its membrane is (1 - 1/tau)(1 - spike).",
        [Table(["", "potentials in the window", "mean sensitivity, theorem", "its neurons, in the window", "outside"], rows)],
        figures,
    )


def _surrogates(part: dict[str, Any]) -> Section:
    figures, rows = [], []
    for who, found in part.items():
        series = {"with clamp": found["clamped"]["histogram"], "without clamp": found["unclamped"]["histogram"]}
        figures.append(
            Figure(f"Surrogate gradients of {WHO[who]}, as a share of the peak", heatmaps.bars(series, 0, 1, "surrogate gradient / peak"))
        )
        for layer, dead in found["clamped"]["dead_by_layer"].items():
            rows.append([layer, f"{100 * dead:.1f} %", f"{100 * found['unclamped']['dead_by_layer'][layer]:.1f} %"])
    return Section(
        "Surrogate gradients and the clamp",
        "Figure 3: the clamp of the spatial map keeps surrogate gradients of the attention alive.",
        "The surrogate gradient at the membrane potential of every neuron in attentions under top-down control, and in the processing "
        "module, over all time steps. A neuron counts as dead below 1 % of the peak.",
        "“Without clamp” is the same network with its map unbounded, not one that was trained without.",
        [Table(["layer", "dead with clamp", "dead without"], rows)],
        figures,
    )


def _attention_maps(part: dict[str, Any]) -> Section:
    return Section(
        "Attention maps",
        "Figures 4 and 5: in the second pass attention moves to the object, on corrupted images too.",
        "rate: spikes that leave the last block's attention, mean over channels and time steps of the pass. gradient: Grad-CAM on the "
        "features of the pass, for the class that the network names in the end. Attention on the object: the sum of the map times the "
        "object's cover of each token, over the sum of the map. The object is what differs from a plain background.",
        "The paper does not define its maps. All maps of one kind and network share a scale for each image. Images without a plain "
        "background, and silent maps, do not count. Intervals are over images. The object of a corrupted image is that of the clean one.",
        tables=[Table(["attention on the object", "images", "even", "by pass", "last minus first pass"], _focus_rows(part))],
        gallery=[row for index in range(len(part["network"]["images"])) for row in _rows_of_image(part, index)],
    )


def _focus_rows(part: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"{WHO[who]}, {column}, {kind}",
            str(focus["images"]),
            _percent(focus["area"]),
            " → ".join(map(_percent, focus["passes"] or ())),
            _interval(focus["change"], 100, "+.2f") if focus["change"] else "",
        ]
        for who, found in part.items()
        for column, kinds in (found["focus"] or {}).items()
        for kind, focus in kinds.items()
    ]


def _rows_of_image(part: dict[str, Any], index: int) -> list[list[Figure]]:
    """Return one row for the image and one for each network, kind of map and pass; the columns are clean and the corruptions.

    Without corruptions all are in one row.
    """
    columns = part["network"]["images"][index]["columns"]
    label = part["network"]["images"][index]["label"]
    pictures = [Figure(f"class {label}, {name}", _image(column["picture"])) for name, column in columns.items() if column["picture"]]
    rows = [pictures] if pictures else []
    for who, found in part.items():
        own = found["images"][index]["columns"].values()
        for kind in ("rate", "gradient"):
            for number in range(len(next(iter(own))[kind])):
                title = f"{WHO[who]}, pass {number + 1}, {kind}"
                maps = [heatmaps.spatial_map(column[kind][number]) for column in own]
                rows.append([Figure("" if place else title, picture) for place, picture in enumerate(maps)])
    return rows if len(columns) > 1 else [[figure for row in rows for figure in row]]


def _energy(part: dict[str, Any]) -> Section:
    tables = []
    for who, found in part.items():
        segments = [
            ["stem, shared" if row["segment"] is None else f"segment {row['segment']}", f"{row['paper_mj']:.5f}", f"{row['strict_mj']:.5f}"]
            for row in found["segments"]
        ]
        total = [
            ["all", f"{found['paper_mj']:.5f}", f"{found['strict_mj']:.5f}"],
            ["of it the top-down path", f"{found['topdown_paper_mj']:.5f}", f"{found['topdown_strict_mj']:.5f}"],
        ]
        tables.append(Table([f"mJ per image of {WHO[who]}", "paper's convention", "strict"], [*segments, *total]))
    layers = [
        [
            f"{layer['name']}, segment {layer['segment'] or 'all'}",
            f"{layer['macs'] / 1e6:.3f}",
            f"{100 * layer['rate']:.1f} %",
            f"{layer['operations'] / 1e6:.3f}",
            "spikes" if layer["is_binary"] else "numbers",
            f"{layer['paper_mj']:.6f}",
            f"{layer['strict_mj']:.6f}",
        ]
        for layer in part["network"]["layers"]
    ]
    tables.append(Table(["layer", "MACs (M)", "rate", "operations (M)", "inputs", "mJ, paper", "mJ, strict"], layers))
    return Section(
        "Energy",
        "ImageNet, 224 to 384 pixels: 38.91 / 64.27 / 113.64 mJ for QKFormer HST-10-768, and 39.10 / 64.45 / 113.79 mJ for TDFormer.",
        "Paper's convention: 4.6 pJ for each MAC of the first convolution, 0.9 pJ x rate x MACs elsewhere. Strict: layers whose inputs are "
        "not all 0 or 1, such as sums of spikes, cost 4.6 pJ for each MAC; the others 0.9 pJ for each weight that a spike meets.",
        "BatchNorm counts as folded. Memory accesses, which dominate on real chips, do not count.",
        tables,
    )


SECTIONS = {
    "topdown_use": _topdown_use,
    "mutual_information": _mutual_information,
    "time_gradients": _time_gradients,
    "surrogates": _surrogates,
    "attention_maps": _attention_maps,
    "energy": _energy,
}


# --- small things --------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _interval(found: dict[str, float], factor: float = 1, form: str = ".4f") -> str:
    value, low, high = (f"{factor * found[name]:{form}}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _image(png: str) -> Markup:
    return Markup('<img class="seen" alt="the image" src="data:image/png;base64,{}">').format(png)
