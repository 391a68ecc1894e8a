"""What a run prints: lines that stay, and below them a line on its progress."""

import atexit
import contextlib
import math
import os
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from loops.hook import Hook

_SECONDS_BETWEEN_STATUS_LINES = 30
_BAR_WIDTH = 20


class Terminal(Hook):
    """Prints lines, and on a terminal a live line below them.

    If the output is not a terminal, a status is printed at most twice a minute. Nothing is ever
    raised: an output that is closed or full is ignored.

    Args:
        stream: text stream; default: standard output.
        quiet: print nothing, as on a worker that is not the chief.
        metrics: label and format of each metric to print, by its name in a row, such as
            `{"top_1_accuracy": ("top-1", ".2%")}`. The loss is always printed.
        best_metric: name of the metric whose best value on validation is printed.
        log: a MetricsLog; without it, only the rows of this process are known.
        verbosity: 0 prints only lines that are printed `always`; 1 also a line per epoch and the
            status; 2 also a line per row of training metrics.

    Attributes:
        metrics, best_metric, log: as above; they may be set later.
        verbosity: as above.
    """

    def __init__(
        self,
        stream=None,
        *,
        quiet: bool = False,
        metrics: dict[str, tuple[str, str]] | None = None,
        best_metric: str | None = None,
        log=None,
        verbosity: int = 1,
    ):
        self.verbosity = verbosity
        self.metrics = metrics or {}
        self.best_metric = best_metric
        self.log = log
        self._stream = _SafeStream(None if quiet else stream or sys.stdout)
        self._console = Console(
            file=self._stream,
            force_terminal=self._stream.isatty(),
            force_jupyter=False,
            markup=False,
            highlight=False,
            emoji=False,
        )
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = None
        self._spinner = Spinner("dots" if self._stream.is_unicode else "line", style="green")
        self._rows = []
        self._images_per_second = math.nan
        self._last_status = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Removes the live line."""
        if self._live is not None:
            self._live.stop()
            atexit.unregister(self._live.stop)
            self._live = None

    def line(self, text: str | Text, *, wrap: bool = False, always: bool = False) -> None:
        """Prints a line that stays.

        Args:
            text: the line.
            wrap: break it between words to fit the terminal.
            always: print it also with a verbosity of 0.
        """
        if not (self.verbosity or always):
            return
        if self._is_live:
            self._console.print(text, soft_wrap=not wrap)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def status(self, text: str) -> None:
        """Shows what is going on, until the next status."""
        self._show([Text(text)])

    def _show(self, parts: list[Text]) -> None:
        """Shows parts of a status, the most important first, as many as fit."""
        if not self.verbosity:
            return
        if self._is_live:
            self._show_live(_LiveLine(self._spinner, parts))
        elif time.monotonic() - self._last_status > _SECONDS_BETWEEN_STATUS_LINES:
            self._last_status = time.monotonic()
            self.line("  ".join(part.plain for part in parts))

    def _show_live(self, line: "_LiveLine") -> None:
        if self._live is not None:
            self._live.update(line)
            return
        self._live = Live(
            line,
            console=self._console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=self._stream.is_standard_output(),
            redirect_stderr=False,
        )
        self._live.start()
        # A process that is killed could not show it again.
        self._console.show_cursor(True)
        atexit.register(self._live.stop)

    @property
    def _all_rows(self) -> list[dict]:
        return self._rows if self.log is None else self.log.rows

    def on_start(self, trainer) -> None:
        self._rows = [row for row in self._rows if row["step"] <= trainer.step]
        self._images_per_second = math.nan

    def on_log(self, trainer, row: dict) -> None:
        self._rows.append(row)
        self._images_per_second = trainer.timings.get("images_per_second", math.nan)
        if self.verbosity > 1:
            names = ("loss", *self.metrics)
            title = f"  step {row['step']:,}"
            parts = [Text(title), self._figures(row, names, "train"), _rate(row), self._speed()]
            self.line(Text("  ").join(part for part in parts if part), wrap=True)

    def on_evaluate(self, trainer, row: dict, scores) -> None:
        del trainer, scores
        self._rows.append(row)

    def on_progress(self, trainer) -> None:
        plan, step = trainer.plan, trainer.step
        # The last batch of a run may go a little beyond its length.
        epoch = min(plan.epoch(step), plan.epochs)
        last = next((r for r in reversed(self._all_rows) if r["split"] == "train"), {})
        first_metric = next(iter(self.metrics), "loss")
        parts = [
            Text(f"epoch {epoch:.1f}/{plan.epochs:g}", "bold"),
            Text(f"step {step:,}/{plan.total_steps:,}"),
            _time_left(trainer),
            self._figures(last, ("loss", first_metric)),
            _rate(last),
        ]
        if self._is_live:
            parts.insert(2, self._bar(step / plan.total_steps))
        if trainer.activity != "training":
            parts.insert(0, Text(trainer.activity))
        parts += [self._speed(), self._best(trainer)]
        self._show([part for part in parts if part])

    def on_epoch(self, trainer) -> None:
        plan, step = trainer.plan, trainer.step
        names = ("loss", *self.metrics)
        rows = [row for row in self._all_rows if row["split"] == "train"]
        train = means(rows, plan.epoch_start(step), step, names)
        val = next((r for r in self._all_rows if (r["split"], r["step"]) == ("val", step)), {})
        parts = [
            Text.assemble(
                (f"epoch {plan.whole_epochs(step):g}/{plan.epochs:g}", "bold"), f"  step {step:,}"
            ),
            self._figures(train, names, "train"),
            self._figures(val, names, "val"),
            self._speed(),
            _time_left(trainer),
        ]
        self.line(Text("  ").join(part for part in parts if part), wrap=True)

    def on_end(self, trainer, outcome) -> None:
        del trainer, outcome
        self.close()

    def _figures(self, row: dict, names: tuple[str, ...], split: str = "") -> Text:
        """The finite figures of a row with their labels, such as "train loss 0.1234 top-1 90%"."""
        formats = {"loss": ("loss", ".4f"), **self.metrics}
        known = [name for name in dict.fromkeys(names) if math.isfinite(row.get(name, math.nan))]
        words = [f"{formats[name][0]} {row[name]:{formats[name][1]}}" for name in known]
        title = (f"{split} ", "cyan" if split == "train" else "green") if split else ""
        return Text.assemble(title, " ".join(words)) if words else Text()

    def _best(self, trainer) -> Text:
        if self.best_metric is None:
            return Text()
        step = int(trainer.state.progress["best_step"].numpy())
        row = next((r for r in self._all_rows if (r["split"], r["step"]) == ("val", step)), {})
        figure = self._figures(row, (self.best_metric,))
        return Text.assemble("best ", figure) if figure else figure

    def _speed(self) -> Text:
        rate = self._images_per_second
        return Text(f"{rate:,.0f} images/s" if math.isfinite(rate) else "", "dim")

    def _bar(self, fraction: float) -> Text:
        full = round(min(max(fraction, 0), 1) * _BAR_WIDTH)
        mark, rest = ("━", "━") if self._stream.is_unicode else ("=", "-")
        return Text.assemble((mark * full, "green"), (rest * (_BAR_WIDTH - full), "dim"))


def _rate(row: dict) -> Text:
    """The learning rate in a row of training metrics."""
    rate = row.get("learning_rate", math.nan)
    return Text(f"lr {rate:.3g}" if math.isfinite(rate) else "", "dim")


def _time_left(trainer) -> Text:
    seconds = trainer.seconds_left
    return Text(f"{duration(seconds)} left" if math.isfinite(seconds) and seconds > 0 else "")


def means(rows: list[dict], start: int, step: int, names: tuple[str, ...]) -> dict[str, float]:
    """Means over the steps from `start` to `step` of the figures in rows of training metrics."""
    sums, weights, before = {}, {}, start
    for row in rows:
        if start < row["step"] <= step:
            for name in names:
                if math.isfinite(row.get(name, math.nan)):
                    weight = row["step"] - before
                    sums[name] = sums.get(name, 0.0) + weight * row[name]
                    weights[name] = weights.get(name, 0) + weight
            before = row["step"]
    return {name: total / weights[name] for name, total in sums.items()}


def duration(seconds: float) -> str:
    """A number of seconds as text: "48s", "12m 05s", "3h 20m"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds // 60 % 60:02d}m"


class _LiveLine:
    """A spinner and as many parts, the first being the most important, as fit in one line."""

    def __init__(self, spinner: Spinner, parts: list[Text]):
        self._spinner, self._parts = spinner, parts

    def __rich_console__(self, console, options):
        line = Text.assemble(self._spinner.render(console.get_time()), " ", self._parts[0])
        for part in self._parts[1:]:
            # The last column stays free: some terminals would wrap the line.
            if line.cell_len + 2 + part.cell_len < options.max_width:
                line = Text.assemble(line, "  ", part)
        line.truncate(options.max_width - 1)
        line.end = ""
        yield line


class _SafeStream:
    """A text stream that does not raise.

    Characters that its encoding lacks are escaped. Once a write has failed, output is discarded.
    """

    def __init__(self, stream):
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.is_unicode = self.encoding.lower().startswith("utf")

    def is_standard_output(self) -> bool:
        return self._stream is not None and self._stream is sys.stdout

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self._stream.isatty()
        return False

    def write(self, text: str) -> int:
        text = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._call("write", text)
        return len(text)

    def flush(self) -> None:
        self._call("flush")

    def _call(self, method: str, *args) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*args)
        except (OSError, ValueError):
            self._discard()

    def _discard(self) -> None:
        """Discards what the stream still holds, which Python would write at exit."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        self._stream = None
