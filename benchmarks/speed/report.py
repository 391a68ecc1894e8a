"""Tables, ratios and the chart, from what was measured."""

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.speed.contest import Measured

SHORT = {"float32": "f32", "mixed_bfloat16": "bf16"}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def row(measured: Measured, multiply_adds: int = 0, roof: float = 0.0) -> dict:
    """The figures of a contestant, for JSON.

    Args:
        measured: what was found.
        multiply_adds: of the forward pass for one image. A training step is counted as three of
            them, of two operations each.
        roof: GFLOP/s of a matrix product in the same precision; 0 if it was not measured.
    """
    job = measured.job
    place = {
        name: getattr(job, name)
        for name in ("framework", "task", "net", "precision", "batch_size", "replicas")
    }
    found = {"name": job.name, **place, "variant": job.variant}
    if measured.tried:
        found["tried"] = measured.tried
    if measured.failed:
        return {**found, "failed": measured.failed}
    gflops = measured.rate * multiply_adds * 6e-9
    waiting = [window["waiting"] for window in measured.windows if "waiting" in window]
    figures = {
        "images_per_second": summary(measured.rates()),
        "images_per_cpu_second": summary(measured.rates("cpu")),
        "windows": measured.windows,
        "peak_bytes": measured.peak_bytes,
        "first_step_seconds": measured.start["first_step_seconds"],
        "first_step_cpu_seconds": measured.start["cpu"],
        "waiting_for_data": statistics.median(waiting) if waiting else None,
        "gflops": gflops or None,
        "share_of_roof": gflops / roof if gflops and roof else None,
        "idle_cpu": measured.idle_cpu,
        "disturbed": measured.disturbed,
    }
    return found | figures


NAME_WIDTH = 50
HEADER = (
    f"{'':<{NAME_WIDTH}}{'images/s':>24}{'per CPU s':>11}{'peak':>9}{'first step':>12}{'waits':>7}"
    f"{'GFLOP/s':>9}{'of roof':>9}"
)


def line(found: dict) -> str:
    """A row as text."""
    name = f"  {found['name']}, {SHORT.get(found['precision'], found['precision'])}"
    if "failed" in found:
        return f"{name}: {found['failed']}"
    rate, waiting = found["images_per_second"], found["waiting_for_data"]
    texts = [
        f"{rate['median']:,.0f} ({rate['low']:,.0f} to {rate['high']:,.0f})".rjust(24),
        f"{found['images_per_cpu_second']['median']:,.0f}".rjust(11),
        f"{found['peak_bytes'] / 1e9:.2f} GB".rjust(9),
        f"{found['first_step_seconds']:.1f} s".rjust(12),
        ("" if waiting is None else f"{waiting:.1%}").rjust(7),
        (f"{found['gflops']:,.0f}" if found["gflops"] else "").rjust(9),
        (f"{found['share_of_roof']:.0%}" if found["share_of_roof"] else "").rjust(9),
    ]
    return f"{name:<{NAME_WIDTH}}{''.join(texts)}"


def best(results: Iterable[Measured], framework: str, task: str, **place) -> Measured | None:
    """The fastest contestant of a framework that did a task; None if there is none.

    Args:
        results: all contestants.
        framework: of the job.
        task: of the job.
        **place: other fields of the job.
    """
    fitting = [
        x
        for x in results
        if not x.failed
        and x.windows
        and {"framework": framework, "task": task, **place}.items() <= vars(x.job).items()
    ]
    return max(fitting, key=lambda x: x.rate, default=None)


def ratio(what: str, one: Measured | None, other: Measured | None) -> list[dict]:
    """How many times as fast one contestant is as another, round by round; empty if one is missing.

    Both figures of a round are of about the same time, so that a machine that slows down for a
    while slows both.
    """
    if one is None or other is None:
        return []
    found = {
        name: summary([a / b for a, b in zip(one.rates(per), other.rates(per), strict=False)])
        for name, per in (("images_per_second", "seconds"), ("images_per_cpu_second", "cpu"))
    }
    return [{"what": what, "of": one.job.name, "over": other.job.name, **found}]


def single(what: str, value: float, form: str = ".2f") -> dict:
    """A figure without windows, for the list of ratios."""
    return {"what": what, "value": value, "text": f"{value:{form}}"}


def ratio_line(found: dict) -> str:
    """A ratio as text."""
    if "value" in found:
        return f"  {found['what']:<66}{found['text']:>8}"
    a, b = found["images_per_second"], found["images_per_cpu_second"]
    return (
        f"  {found['what']:<66}{a['median']:>8.2f} ({a['low']:.2f} to {a['high']:.2f}); "
        f"by CPU second {b['median']:.2f}"
    )


def training_ratios(results: Sequence[Measured]) -> list[dict]:
    """The comparisons of a net's training."""
    found = _over_others(results, "train")
    for precision in sorted({x.job.precision for x in results}):
        place, short = {"precision": precision}, SHORT[precision]
        train = best(results, "ours", "train", **place)
        alone, other = (
            best(results, "ours", "step", **place),
            best(results, "torch", "train", **place),
        )
        if train and alone:
            found.append(
                single(f"cost of everything around the step, {short}", around(train, alone), ".1%")
            )
        if train and other:
            memory = train.peak_bytes / other.peak_bytes
            found.append(single(f"peak memory over PyTorch, {short}", memory))
    return found


def evaluation_ratios(results: Sequence[Measured]) -> list[dict]:
    """The comparisons of a net's evaluation."""
    return _over_others(results, "evaluate")


def _over_others(results: Sequence[Measured], task: str) -> list[dict]:
    found = []
    precisions = sorted({x.job.precision for x in results})
    places = [({"precision": p}, SHORT[p]) for p in precisions]
    for framework, name in (("keras", "Keras"), ("torch", "PyTorch")):
        for place, short in [({}, "each at its best"), *places]:
            if not place and len(precisions) < 2:
                continue
            one = best(results, "ours", task, **place)
            other = best(results, framework, task, **place)
            found += ratio(f"{task}, over {name} at its best way, {short}", one, other)
        default = best(results, framework, task, variant="default")
        found += ratio(f"{task}, over {name} at its default", best(results, "ours", task), default)
    return found


def around(train: Measured, step: Measured) -> float:
    """The share of the speed that is lost to what is around the step.

    A window has none of the saves that end an epoch, of which there are two; they are added. Sums
    over all windows are compared, since not every window has a row of metrics.
    """

    def seconds_per_image(measured):
        sums = [sum(w[name] for w in measured.windows) for name in ("seconds", "images")]
        return sums[0] / sums[1]

    facts = train.windows[-1]
    saves = 2 * facts.get("save_seconds", 0.0) / facts.get("epoch_images", 1.0)
    return 1 - seconds_per_image(step) / (seconds_per_image(train) + saves)


def draw(path, training: dict[str, list[dict]]) -> None:
    """Draws images per second as bars, a panel for each net, with the range of the windows.

    Args:
        path: of the PNG file.
        training: by net, rows as `row` makes them.
    """
    from pictures.figure import COLORS, new_figure, save, styled

    colors = dict(zip(("ours", "keras", "torch"), COLORS, strict=False))

    @styled
    def figure():
        longest = max(map(len, training.values()))
        found = new_figure(5 + 5 * len(training), 1.5 + 0.45 * longest, layout="constrained")
        axes = found.subplots(1, len(training), squeeze=False)[0]
        for ax, (net, rows) in zip(axes, training.items(), strict=True):
            rates = [r["images_per_second"] for r in rows]
            middle = [x["median"] for x in rates]
            ends = [
                [m - x["low"] for m, x in zip(middle, rates, strict=True)],
                [x["high"] - m for m, x in zip(middle, rates, strict=True)],
            ]
            names = [f"{r['name']}, {SHORT[r['precision']]}" for r in rows]
            ax.barh(
                names, middle, xerr=ends, color=[colors[r["framework"]] for r in rows], capsize=3
            )
            ax.invert_yaxis()
            ax.set_title(net)
            ax.set_xlabel("images/s in training")
        return found

    save(figure(), path)
