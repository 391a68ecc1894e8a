"""Trains recipes again, and says which recorded results still hold.

    python recipes/rerun.py digits              # does it still hold?
    python recipes/rerun.py                     # all that are recorded and marked as quick
    python recipes/rerun.py digits --seeds=0,1,2,3,4 --record
    python recipes/rerun.py digits --from=DIRECTORY --record         # without training

Each recipe is trained with the seeds of its records in results/, or with `--seeds`, each in a
process of its own, in runs/recipes/COMMIT/RECIPE; uncommitted changes of tracked files are part of
COMMIT. A run that was stopped is resumed there, and one that is finished is not trained again.
`--from` takes the runs in another directory as they are, by default all of them.

A row holds if Welch's t test at 1% finds no difference between its mean and the recorded one, and
it is lower by no more than a point or three standard errors, whichever is more. With a single seed,
it holds if it is no further away than that. Otherwise it differs: it is better, or has FAILED. With
three seeds or more, at most two in a hundred rows of unchanged code fail by chance. The exit status
is 0 only if all hold. Results are compared only with records of the same data: not those of the
original CIFAR-10 with those of a JPEG copy.

`--record` copies the small files of the runs to results/, in place of what is there. They must be
finished, of the recipe as it is, trained from committed code, and have all seeds that are recorded.
"""

import argparse
import hashlib
import math
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from commands.command_line import fail, quiet  # noqa: E402

STOPPED = (130, 143)  # Exit codes after SIGINT and SIGTERM.

try:
    with quiet():
        import numpy as np

        from commands import records, statistics
        from commands.output import write
        from commands.provenance import commit
        from commands.records import Record
        from commands.results import check_same_net, name_of_data, read_published
        from commands.setting import ConfigError
        from data import DataError
        from loops.errors import RunError, SaveError
        from loops.records.run import RESULT
        from nets import NetError
except KeyboardInterrupt:  # TensorFlow takes seconds to load.
    sys.exit(STOPPED[0])

RECORDS, RUNS = ROOT / "results", ROOT / "runs" / "recipes"
LEVEL, POINT, ERRORS = 0.01, 0.01, 3  # Of the test; of accuracy; standard errors.


def seeds_in(directory: pathlib.Path) -> list[int]:
    """The seeds of a recipe whose runs or records are in a directory."""
    found = (re.fullmatch(r"seed_(0|[1-9]\d*)", path.name) for path in directory.glob("seed_*"))
    return sorted(int(match[1]) for match in found if match)


def read(directory: pathlib.Path, seeds: list[int]) -> list[Record]:
    """The records in a directory of a recipe; raises as `records.read_record`."""
    return [records.read_record(directory / f"seed_{seed}") for seed in seeds]


def runs_of_this_code() -> pathlib.Path:
    """The directory of runs that are trained from the code as it is."""
    name = commit()
    if name.endswith("-dirty"):
        diff = subprocess.run(["git", "-C", ROOT, "diff", "HEAD"], capture_output=True, check=True)
        name += f"-{hashlib.sha256(diff.stdout).hexdigest()[:6]}"
    return RUNS / name


def train(recipe: str, seed: int, directory: pathlib.Path, data_dir: str | None = None) -> None:
    """Trains a seed of a recipe, or resumes it; raises RunError if that fails."""
    flags = [f"--flagfile=recipes/{recipe}.txt", f"--seed={seed}"]
    # With paths from the root, so that records have none of this machine.
    flags.append(f"--run_dir={directory.relative_to(ROOT)}/seed_{seed}")
    if data_dir:
        flags.append(f"--data_dir={data_dir}")
    process = subprocess.Popen([sys.executable, "train.py", *flags], cwd=ROOT)
    # Let the run save, and end with it. A terminal's Ctrl-C reaches it without us.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:  # Ended by a signal before it could handle it.
        code = 128 - code
    if code in STOPPED:
        sys.exit(code)
    if code:
        raise RunError(f"training seed {seed} ended with exit code {code}")


def check_same_data(found: list[Record], recorded: list[Record]) -> None:
    """Raises ConfigError if runs are of other data than the records are."""
    wanted = recorded[0].run.data
    for run in found:
        if run.run.data.fingerprints != wanted.fingerprints:
            raise ConfigError(
                f"{run.run.path} is of other data than the records, {name_of_data(wanted)}, and "
                "cannot be compared with them"
            )


def check_data_at_hand(recipe: str, recorded: Record, data_dir: str | None) -> None:
    """Raises ConfigError if the data on this machine are not those of a record."""
    try:
        recorded.run.dataset(data_dir)
    except RunError as error:
        raise ConfigError(
            f"the records are of {name_of_data(recorded.run.data)}, and {recorded.run.data.name} "
            "is other data here, so that results cannot be compared; to train it anyway, use "
            f"train.py --flagfile=recipes/{recipe}.txt"
        ) from error


def record(recipe: str, found: list[Record]) -> str:
    """Copies the small files of runs to the records of a recipe, in place of what is there.

    Returns:
        What is to be said.

    Raises:
        ConfigError: one was trained from code that is in no commit.
    """
    for run in found:
        records.check_committed(run)
    target = RECORDS / recipe
    new, old = (target.with_name(f".{recipe}.{name}") for name in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        for run in found:
            copy = new / run.run.path.name
            copy.mkdir(parents=True)
            for name in records.FILES:
                shutil.copy(run.run.path / name, copy / name)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return f"recorded, {described(found)}"


def verdict(before: np.ndarray, now: np.ndarray) -> str:
    """What is to be said of accuracies in [0, 1], each float [seeds], beside those of before.

    Returns:
        "holds", "differs: better" or "FAILED: worse".
    """
    difference = now.mean() - before.mean()
    allowed = max(POINT, ERRORS * _standard_error(before, now))
    if min(len(before), len(now)) > 1:
        estimate = statistics.welch(before, now, 1 - LEVEL)
        # Without any spread, there is no test.
        holds = estimate.p_value >= LEVEL or (
            math.isnan(estimate.p_value) and estimate.difference == 0
        )
    else:
        holds = abs(difference) <= allowed
    if holds and difference >= -allowed:  # The test of two or three seeds lets much pass.
        return "holds"
    return "differs: better" if difference > 0 else "FAILED: worse"


def _standard_error(before: np.ndarray, now: np.ndarray) -> float:
    """That of the difference of two means; a single value has the spread of the others."""
    variances = [group.var(ddof=1) for group in (before, now) if len(group) > 1]
    if not variances:
        return 0.0
    return math.sqrt(variances[0] / len(before) + variances[-1] / len(now))


def described(found: list[Record]) -> str:
    """The mean accuracy and the mean seconds of some runs."""
    accuracy = np.mean([run.accuracy for run in found])
    seconds = np.mean([run.cost.seconds.total for run in found])
    return f"{accuracy:.2%} in {seconds:,.0f} s (n = {len(found)})"


def rerun(recipe: str, args: argparse.Namespace, to_record: dict[str, list[Record]]) -> str:
    """Trains a recipe, and compares it, or adds it to what is to be recorded.

    Returns:
        What is to be said.

    Raises:
        ConfigError, DataError, NetError, RunError, OSError: it cannot be done.
    """
    recorded = seeds_in(RECORDS / recipe)
    directory = (args.source or runs_of_this_code()) / recipe
    seeds = args.seeds or (seeds_in(directory) if args.source else recorded)
    if not seeds:
        raise ConfigError(
            f"there are no runs in {directory}"
            if args.source
            else "it has no records; name the seeds to train, such as --seeds=0,1,2"
        )
    if args.record and not args.source and commit().endswith("-dirty"):
        raise ConfigError("--record: there are changes that are in no commit")
    if args.record and (lost := sorted({*recorded} - {*seeds})):
        raise ConfigError(
            f"--record would lose seed {lost[0]}; name it as well, or remove it from "
            f"{RECORDS / recipe} first"
        )
    before = [] if args.record else read(RECORDS / recipe, recorded)
    if before and not args.source:
        check_data_at_hand(recipe, before[0], args.data_dir)
    known = 0
    if not args.source:
        known = sum((directory / f"seed_{seed}" / RESULT).exists() for seed in seeds)
        for seed in seeds:
            train(recipe, seed, directory, args.data_dir)
    now = read(directory, seeds)
    for run in now:
        if not args.source and not directory.parent.name.startswith(run.cost.commit):
            raise RunError(f"the code has changed: {run.run.path} is of {run.cost.commit}")
    check_same_net(now)
    if args.record:
        to_record[recipe] = now
        return f"complete, {described(now)}"
    if not before:
        return f"not recorded, {described(now)}"
    check_same_data(now, before)
    word = verdict(*(np.array([run.accuracy for run in group]) for group in (before, now)))
    note = f"; {known} of {len(seeds)} trained before" if known else ""
    return f"{word}, {described(now)}; recorded {described(before)}{note}"


def say(recipe: str, function: Callable[..., str], *args) -> bool:
    """Prints what a function returns, or why it cannot; returns whether all is well."""
    try:
        text = function(*args)
    except (ConfigError, DataError, NetError, RunError, OSError) as error:
        text = f"FAILED: {error}"
    write(f"{recipe}: {text}\n")
    return not text.startswith(("differs", "FAILED"))


def _seeds(text: str) -> list[int]:
    seeds = [int(x) for x in text.split(",") if re.fullmatch(r"[0-9]{1,9}", x)]
    if len({*seeds}) < len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different seeds as in 0,1,2")
    return seeds


def _directory(text: str) -> pathlib.Path:
    if not text or not pathlib.Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a directory")
    return pathlib.Path(text)


def main() -> None:
    """Trains recipes again."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = fail  # One line.
    parser.add_argument(
        "recipes", nargs="*", help="names; default: the quick ones, or those in --from=DIRECTORY"
    )
    parser.add_argument("--seeds", type=_seeds, help="such as 0,1,2; default: those recorded")
    parser.add_argument("--record", action="store_true", help="keep the results as records")
    parser.add_argument(
        "--from",
        dest="source",
        type=_directory,
        metavar="DIRECTORY",
        help="take the runs in DIRECTORY/RECIPE/seed_SEED instead of training; by default all",
    )
    parser.add_argument(
        "--data_dir",
        type=lambda text: str(_directory(text).absolute()),
        help="where the data are, as of train.py",
    )
    args = parser.parse_args()
    names = records.recipe_names()
    if unknown := [name for name in args.recipes if name not in names]:
        parser.error(f"there is no recipe {unknown[0]}; known: {', '.join(names)}")
    try:
        published = read_published().recipes
    except ConfigError as error:
        parser.error(str(error))
    if args.source:
        default = [name for name in names if seeds_in(args.source / name)]
        if not (args.recipes or default):
            parser.error(f"--from: there are no runs of recipes in {args.source}")
    else:
        default = sorted(x for x, what in published.items() if what.quick and seeds_in(RECORDS / x))
    to_record: dict[str, list[Record]] = {}
    well = [say(recipe, rerun, recipe, args, to_record) for recipe in args.recipes or default]
    # Last, since a changed record is a change of the code's commit.
    well += [say(recipe, record, recipe, found) for recipe, found in to_record.items()]
    sys.exit(not all(well))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(STOPPED[0])
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)
    except SaveError as error:
        fail(str(error))
