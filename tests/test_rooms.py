"""Which room may import which, and what must not be written anywhere."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = ("commands", "data", "loops", "nets", "pictures")
COMMANDS = ("train.py", "eval.py", "predict.py", "export.py", "compare.py", "replay.py")
PROGRAMS = [name.removesuffix(".py") for name in COMMANDS]
# By file or folder, what of this project it may import. The longest matching entry holds.
ALLOWED = {
    **{name: {"commands"} for name in COMMANDS},
    "commands": {"commands", "data", "loops", "nets", "pictures"},
    "pictures": {"pictures"},
    "data": {"data"},
    "nets": {"nets"},
    "loops": {"loops"},
    "loops/errors.py": set(),
    "loops/hook.py": set(),
    "loops/interrupt.py": set(),
    "loops/distributed": {"loops.distributed", "loops.errors"},
    "loops/records": {"loops.records", "loops.distributed", "loops.errors", "loops.hook"},
}
# What a room may import of others' packages, besides the standard library.
LIBRARIES = {
    "nets": {"tensorflow", "numpy", "h5py"},
    "data": {"tensorflow", "numpy", "PIL", "sklearn"},
    "loops": {"tensorflow", "numpy"},
    "loops/records": {"tensorflow", "numpy", "rich", "filelock", "tensorboard"},
    "loops/distributed": {"tensorflow", "numpy"},
    "pictures": {"numpy", "matplotlib"},
    "commands": {"tensorflow", "keras", "numpy", "absl", "msgspec", "scipy"},
    # Not required, and imported when they are used.
    "data/tfds.py": {"tensorflow", "numpy", "tensorflow_datasets"},
    "commands/exported.py": {"tensorflow", "numpy", "onnx", "tf2onnx"},
    "commands/verify_export.py": {"tensorflow", "numpy", "onnxruntime"},
}
SOURCES = sorted(ROOT / name for name in COMMANDS) + sorted(
    path for room in ROOMS for path in (ROOT / room).rglob("*.py")
)


def imported(source: str) -> set[str]:
    """Full names of the modules that a source imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # `from loops.records import run` may name a module or something in one.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rule(path: str, rules: dict) -> set[str]:
    """The entry for a path that names most of it."""
    fitting = [key for key in rules if path == key or path.startswith(key + "/")]
    return rules[max(fitting, key=len)]


def broken_imports(path: str, source: str) -> set[str]:
    """Imports of this project's modules that a file may not have."""
    ours = {name for name in imported(source) if name.split(".")[0] in (*ROOMS, *PROGRAMS)}
    allowed = rule(path, ALLOWED)
    return {name for name in ours if not any(f"{name}.".startswith(f"{good}.") for good in allowed)}


@pytest.mark.parametrize("path", [str(p.relative_to(ROOT)) for p in SOURCES])
def test_a_file_imports_only_what_its_room_may(path):
    source = (ROOT / path).read_text()
    assert broken_imports(path, source) == set()
    assert not {"tests", "benchmarks"} & {name.split(".")[0] for name in imported(source)}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("loops/step.py", "import data"),
        ("loops/step.py", "from nets.layers import BatchNorm"),
        ("loops/records/run.py", "from loops.trainer import Trainer"),
        ("loops/records/run.py", "from loops import state"),
        ("loops/distributed/workers.py", "from loops.records.run import CONFIG"),
        ("loops/hook.py", "import loops.errors"),
        ("data/pipeline.py", "def f():\n    from loops.errors import RunError"),
        ("train.py", "import nets"),
    ],
)
def test_a_broken_rule_is_found(path, source):
    assert broken_imports(path, source)


@pytest.mark.parametrize("path", [str(p.relative_to(ROOT)) for p in SOURCES if p.parent != ROOT])
def test_a_room_uses_only_its_libraries(path):
    others = {name.split(".")[0] for name in imported((ROOT / path).read_text())}
    others -= {*ROOMS, *sys.stdlib_module_names}
    assert others <= rule(path, LIBRARIES)


def test_no_room_is_part_of_a_cycle():
    edges = {
        path.parent.relative_to(ROOT).as_posix(): set() for path in SOURCES if path.parent != ROOT
    }
    for path in SOURCES:
        here = path.parent.relative_to(ROOT).as_posix()
        for name in imported(path.read_text()):
            parents = [
                room for room in edges if f"{name}.".startswith(room.replace("/", ".") + ".")
            ]
            there = max(parents, key=len, default=here)
            # The leaves of `loops` belong to everybody in it.
            if there != here and name.split(".")[:2] not in (
                ["loops", "errors"],
                ["loops", "hook"],
            ):
                edges.setdefault(here, set()).add(there)
    done: list[str] = []
    while len(done) < len(edges):
        free = [room for room in edges if room not in done and edges[room] <= set(done)]
        assert free, {room: edges[room] - set(done) for room in edges if room not in done}
        done += free


@pytest.mark.parametrize("name", COMMANDS)
def test_entry_points_stay_short(name):
    assert len((ROOT / name).read_text().splitlines()) <= 25


def test_only_the_command_line_exits_the_process():
    for path in SOURCES:
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "quit")
        ]
        exits = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Raise) and node.exc and "SystemExit" in ast.unparse(node.exc)
        ]
        if path.name != "command_line.py":
            assert not calls + exits, path


def test_updates_are_made_in_one_place():
    """So that a subclass that is named there is used by every command, and in benchmarks."""
    makers = [
        path.relative_to(ROOT).as_posix()
        for path in [*SOURCES, *(ROOT / "benchmarks").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "TrainStep"
    ]
    assert makers == ["commands/session.py"]


def private_uses(source: str) -> set[str]:
    """Private attributes that a source uses and does not define itself."""
    nodes = list(ast.walk(ast.parse(source)))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)} | {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")
    }
    return {
        ast.unparse(node)
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in own
    }


@pytest.mark.parametrize("path", [str(p.relative_to(ROOT)) for p in SOURCES])
def test_nothing_private_of_keras_or_tensorflow_is_used(path):
    uses = private_uses((ROOT / path).read_text())
    # Neither of these is private.
    assert {use for use in uses if not use.endswith("._asdict")} <= {"os._exit"}


def test_private_uses_are_found():
    assert private_uses("for layer in net._flatten_layers(): pass") == {"net._flatten_layers"}
    assert private_uses("self._keep = manager._max_to_keep") == {"manager._max_to_keep"}


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
        # Building a net and measuring it are no part of its forward pass; the last is the fault.
        if path.name not in ("__init__.py", "table.py", "frozen_norm.py"):
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
