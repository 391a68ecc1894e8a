"""Who may import whom, and what must not be written anywhere."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = ("nets", "data", "loops")
SOURCES = sorted(p for p in ROOT.glob("*.py")) + sorted(
    p for room in (*ROOMS, "cli") for p in (ROOT / room).rglob("*.py")
)


def imported(path: pathlib.Path) -> set[str]:
    """Top-level names of the packages that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_do_not_import_each_other(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    others = {*ROOMS, "cli", "configuration", "experiment", "evaluation", "train", "eval"} - {room}
    for path in files:
        assert not imported(path) & others, path


def test_only_the_command_line_knows_absl():
    assert {p.parent.name for p in SOURCES if "absl" in imported(p)} == {"cli"}


def test_nothing_imports_the_tests():
    for path in SOURCES:
        assert "tests" not in imported(path), path


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_entry_points_stay_short(name):
    assert len((ROOT / name).read_text().splitlines()) < 150


def training_faults(source: str) -> list[str]:
    """Where `training` has a default, may come by position, or is a literal in a call."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "call":
            names = [a.arg for a in node.args.kwonlyargs]
            if "training" not in names:
                faults.append(f"line {node.lineno}: call has no keyword `training`")
            elif node.args.kw_defaults[names.index("training")] is not None:
                faults.append(f"line {node.lineno}: `training` has a default")
        if isinstance(node, ast.Call):
            faults += [
                f"line {node.lineno}: training is a literal"
                for keyword in node.keywords
                if keyword.arg == "training" and isinstance(keyword.value, ast.Constant)
            ]
    return faults


def test_training_is_explicit_in_every_net():
    for path in (ROOT / "nets").glob("*.py"):
        # Building a net and measuring it are no part of its forward pass.
        if path.name not in ("__init__.py", "table.py"):
            assert training_faults(path.read_text()) == [], path


@pytest.mark.parametrize(
    "fault",
    [
        "def call(self, x, *, training=False): ...",
        "def call(self, x, training): ...",
        "def call(self, x): ...",
        "y = self.batch_norm(x, training=False)",
        "y = self.batch_norm(x, training=True)",
    ],
)
def test_training_faults_are_found(fault):
    assert training_faults(fault)
