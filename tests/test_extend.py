"""Follows EXTEND.md in a copy of the project: files and entries as they are, flags together."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# The sections whose command is run as it is; what the others add is tried in one run.
ALONE = ("Net", "Dataset", "Hook")
SECTIONS = {
    part.splitlines()[0]: part for part in (ROOT / "EXTEND.md").read_text().split("\n## ")[1:]
}


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def follow(section: str, copy: pathlib.Path) -> dict[str, int]:
    """Makes the files and the entries of a section; lines that were added, by file."""
    added = {}
    for block in blocks(section, "python"):
        header, _, code = block.partition("\n")
        path = copy / header.removeprefix("# ")
        if not path.exists():
            path.write_text(code)
            added[str(path.relative_to(copy))] = len(code.splitlines())
            continue
        imports, name, entry = re.fullmatch(
            r"(.*)\n\n(\w+) = \{\n(.*)\n\}\n", code, re.DOTALL
        ).groups()
        lines = path.read_text().splitlines()
        at = max(i for i, line in enumerate(lines) if re.match(r"(from|import) ", line))
        if lines[at].endswith("("):
            at = next(i for i in range(at, len(lines)) if lines[i] == ")")
        lines.insert(at + 1, imports)
        start = next(i for i, line in enumerate(lines) if re.match(rf"{name}\b.*= \{{$", line))
        end = next(i for i in range(start, len(lines)) if lines[i] == "}")
        lines.insert(end, entry)
        path.write_text("\n".join(lines) + "\n")
        added[str(path.relative_to(copy))] = len(f"{imports}\n{entry}".splitlines())
    return added


def copy_of_the_project(directory: pathlib.Path) -> pathlib.Path:
    copy = directory / "copy"
    copy.mkdir()
    for name in ("train.py", "eval.py", "commands", "data", "loops", "nets", "pictures"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name)
        else:
            shutil.copy(ROOT / name, copy)
    return copy


def run(copy: pathlib.Path, command: str) -> pathlib.Path:
    """Runs a command in the copy, and returns the directory of the run that it made."""
    before = set((copy / "runs").glob("*"))
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = set((copy / "runs").glob("*")) - before
    return made


def rows(run_dir: pathlib.Path, split: str) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_there_is_a_section_for_each_extension():
    assert list(SECTIONS) == [
        "Net", "Dataset", "Augmentation", "Loss", "Metric", "Optimizer", "Schedule", "Hook",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_an_extension_is_one_file_and_one_entry(name, tmp_path):
    copy = copy_of_the_project(tmp_path)
    new, table = follow(SECTIONS[name], copy).items()
    assert not (ROOT / new[0]).exists()
    assert (ROOT / table[0]).exists()
    assert table[1] == 2, "an import and an entry"


@pytest.mark.slow
def test_all_extensions_work_together(tmp_path):
    copy = copy_of_the_project(tmp_path)
    for section in SECTIONS.values():
        follow(section, copy)
    flags = (
        "--net=tiny --dataset=stripes --augment=crop:1,invert:0.3 --loss=brier --hooks=head_norm "
        "--best_metric=true_probability --optimizer=sign_sgd --schedule=inverse_sqrt --epochs=1"
    )
    for name, section in SECTIONS.items():
        if name not in ALONE:
            (command,) = blocks(section, "sh")
            program, *others = command.split()[1:]
            assert program == "train.py"
            assert set(others) <= {*flags.split(), "--dataset=digits", "--epochs=2"}
    made = run(copy, f"python train.py {flags} --log_steps=2")
    first, *_, last = rows(made, "train")
    assert last["loss"] < first["loss"] < 2
    assert last["head_norm"] > 0
    assert 0 < last["true_probability"] < 1
    # The peak at the end of a warm-up of 2 steps, from where on it falls.
    assert first["learning_rate"] == pytest.approx(1e-3, rel=1e-5)
    assert last["learning_rate"] == pytest.approx(1e-3 * (2 / last["step"]) ** 0.5, rel=1e-5)
    result = json.loads((made / "result.json").read_text())
    (val,) = rows(made, "val")
    assert 0 < result["true_probability"] < 1
    assert set(result["per_class"]) == {"horizontal", "vertical"}
    assert val["true_probability"] > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ALONE)
def test_the_command_of_a_section_trains(name, tmp_path):
    copy = copy_of_the_project(tmp_path)
    follow(SECTIONS[name], copy)
    (command,) = blocks(SECTIONS[name], "sh")
    made = run(copy, command)
    train = rows(made, "train")
    assert train[-1]["loss"] < train[0]["loss"] or len(train) == 1
    assert (made / "result.json").exists()
