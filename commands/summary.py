"""What is printed when a run is finished: its figures on every split, and what to do next."""

import pathlib
import shlex

from commands.run import Run
from loops.metrics import figures
from loops.records.run import PICTURES
from loops.records.terminal import means


def result_line(result: dict) -> str:
    """The figures on the test split in one line, such as "test   loss 0.0543  top-1 97.77% ..."."""
    known = figures().items()
    scores = "  ".join(
        f"{label} {format(result[name], spec)}" for name, (label, spec) in known if name in result
    )
    return f"test   {scores}  {_how(result)}"


def _how(result: dict) -> str:
    which = "best on val" if result["selected_on"] == "val" else "last"
    return f"({result['examples']:,} examples, step {result['step']:,}, {which})"


def summary(run: Run) -> str:
    """A table of a finished run: train over the last epoch, val at its best and its last, test."""
    known, result = figures(), run.result
    rows = run.metrics
    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    lines = []
    if train:
        end = train[-1]["step"]
        last_epoch = means(train, run.plan.epoch_start(end), end, tuple(known))
        lines.append(("train", last_epoch, f"(last epoch, to step {end:,})"))
    if val:
        best = [row for row in val if row["step"] == result["step"]]
        if best and result["selected_on"] == "val":
            lines.append(("val", best[-1], f"(best, step {result['step']:,})"))
        if best != val[-1:]:
            lines.append(("val", val[-1], f"(last, step {val[-1]['step']:,})"))
    lines.append(("test", result, _how(result)))
    cells = [["", *(label for label, _ in known.values()), ""]]
    for split, row, note in lines:
        found = [
            format(row[name], spec) if name in row else "-" for name, (_, spec) in known.items()
        ]
        cells.append([split, *found, note])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            [
                f"{first:<{widths[0]}}",
                *(f"{x:>{width}}" for x, width in zip(middle, widths[1:-1], strict=True)),
                note,
            ]
        ).rstrip()
        for first, *middle, note in cells
    )


def next_steps(run_dir: pathlib.Path) -> list[str]:
    """Lines that name the run and the commands for it."""
    quoted, parent = shlex.quote(str(run_dir)), shlex.quote(str(run_dir.parent))
    drawn = run_dir / PICTURES
    draw = f"python eval.py --run_dir={quoted} --pictures={shlex.quote(str(drawn))}"
    return [
        f"run       {run_dir}",
        f"pictures  {drawn if drawn.is_dir() else draw}",
        f"watch     tensorboard --logdir={parent}",
        f"score     python eval.py --run_dir={quoted}",
        f"try       python predict.py --run_dir={quoted} photo.jpg",
    ]
