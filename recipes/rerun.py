"""Trains recipes again, and says which recorded results still hold.

    python recipes/rerun.py digits --seeds=0,1,2,3,4 --record
    python recipes/rerun.py digits              # does it still hold?
    python recipes/rerun.py                     # all that are recorded and marked as quick

Each recipe is trained with the seeds of its records in results/, or with `--seeds`, in
runs/recipes. A run that was stopped is resumed there, and one that is finished is not trained
again. `--record` copies the small files of the runs to results/, in place of what is there. Without
it, a row holds if its new mean is no further from the recorded one than the seeds explain (Welch's
t test at 1%; for a single seed, one point).
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from commands.command_line import quiet  # noqa: E402

with quiet():
    import numpy as np

    from commands import statistics
    from commands.results import read_published
    from loops.records.run import CONFIG, METRICS, RESULT, TIMES, read_json

RECORDS, RUNS = ROOT / "results", ROOT / "runs" / "recipes"
LEVEL, SINGLE = 0.01, 0.01  # Of the test; of the accuracy of a single seed.


def accuracies(directory: pathlib.Path, seeds) -> np.ndarray:
    """Test accuracies in [0, 1] of the runs of a recipe."""
    paths = [directory / f"seed_{seed}" / RESULT for seed in seeds]
    return np.array([read_json(path)["top_1_accuracy"] for path in paths])


def recorded_seeds(recipe: str) -> list[int]:
    """The seeds of a recipe that have records."""
    found = (RECORDS / recipe).glob(f"seed_*/{RESULT}")
    return sorted(int(path.parent.name.removeprefix("seed_")) for path in found)


def train(recipe: str, seeds: list[int]) -> None:
    """Trains a recipe, or resumes it; ends the program if that fails."""
    flags = [f"--flagfile={ROOT / 'recipes' / f'{recipe}.txt'}", f"--run_dir={RUNS / recipe}"]
    seeds_flag = f"--seeds={','.join(map(str, seeds))}"
    done = subprocess.run([sys.executable, ROOT / "train.py", *flags, seeds_flag], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def record(recipe: str, seeds: list[int]) -> None:
    """Copies the small files of the runs of a recipe to the records."""
    shutil.rmtree(RECORDS / recipe, ignore_errors=True)
    for seed in seeds:
        target = RECORDS / recipe / f"seed_{seed}"
        target.mkdir(parents=True)
        for name in (CONFIG, METRICS, RESULT, TIMES):
            shutil.copy(RUNS / recipe / f"seed_{seed}" / name, target / name)


def verdict(before: np.ndarray, now: np.ndarray) -> tuple[bool, str]:
    """Whether accuracies are those of before, and a line about it."""
    if min(len(before), len(now)) > 1:
        holds = not statistics.welch(now, before, 1 - LEVEL).p_value < LEVEL
    else:
        holds = abs(now.mean() - before.mean()) <= SINGLE
    means = (f"{x.mean():.2%} (n = {len(x)})" for x in (now, before))
    return holds, "{}, recorded {}".format(*means)


def main() -> None:
    """Trains recipes again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", help="names; default: the quick ones")
    parser.add_argument("--seeds", help="such as 0,1,2; default: those that are recorded")
    parser.add_argument("--record", action="store_true", help="keep the results as records")
    args = parser.parse_args()
    known = sorted(path.stem for path in (ROOT / "recipes").glob("*.txt"))
    if unknown := [name for name in args.recipes if name not in known]:
        parser.error(f"there is no recipe {unknown[0]}; known: {', '.join(known)}")
    settings = read_published()["recipes"]
    quick = [x for x in known if settings.get(x, {}).get("quick") and recorded_seeds(x)]
    failed = []
    for recipe in args.recipes or quick:
        seeds = [int(x) for x in args.seeds.split(",")] if args.seeds else recorded_seeds(recipe)
        if not seeds:
            parser.error(f"{recipe} has no records in {RECORDS}; give --seeds")
        train(recipe, seeds)
        if args.record:
            record(recipe, seeds)
            continue
        before = recorded_seeds(recipe)
        if not before:
            print(f"{recipe}: not recorded")
            continue
        holds, text = verdict(
            accuracies(RECORDS / recipe, before), accuracies(RUNS / recipe, seeds)
        )
        print(f"{'holds ' if holds else 'FAILED'} {recipe}: {text}", flush=True)
        failed += [] if holds else [recipe]
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
