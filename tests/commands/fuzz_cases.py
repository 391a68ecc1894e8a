"""Wrong input by the hundred, from a fixed seed: command lines, files of flags, saved runs."""

import dataclasses
import json
import random
import typing

from commands.options import (
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    ReplayOptions,
    TrainOptions,
)
from commands.setting import kind_of

SEED = 20_171_015
OPTIONS = {
    "train.py": TrainOptions,
    "eval.py": EvaluateOptions,
    "predict.py": PredictOptions,
    "export.py": ExportOptions,
    "compare.py": CompareOptions,
    "replay.py": ReplayOptions,
}
# What comes first. A wrong case that is accepted by mistake becomes a short run.
BASE = {
    "train.py": ("--dataset=digits", "--epochs=0.05", "--batch_size=64", "--device=cpu"),
    "eval.py": ("--run_dir=/no/such/run", "--device=cpu"),
    "predict.py": ("--run_dir=/no/such/run", "--device=cpu", "photo.jpg"),
    "export.py": ("--run_dir=/no/such/run", "out"),
    "compare.py": ("/no/such/run",),
    "replay.py": ("--run_dir=/no/such/run", "--step=1", "--device=cpu"),
}
LONG = "x" * 20_000
JUNK = ("", "x", "None", "1 2", "\x1b[31m\r\x07", "ünïcödé ☃", "\udcff\udcfe\udc80", LONG)
NO_NUMBERS = (*JUNK, "nan", "inf", "-inf", "1e999", "--", "1,5", "0x1p3", "true", "9" * 5000)
BY_TYPE = {
    int: (*NO_NUMBERS, "1.5", "1e3", str(10**30), str(-(10**30)), str(2**63)),
    float: (*NO_NUMBERS, "-1", "-1e-9", "1e300", str(10**30)),
    bool: (*JUNK, "perhaps", "2", "-1", "nan"),
    str: ("", "\udcff\udcfe\udc80", "a\udc80"),
}
LISTS = {
    "step_epochs": (
        *JUNK[1:], "nan", "inf", "1e999", "0", "-1", "1,x", "1,,2", ",", "1;2", '"1', "1e300",
    ),
    "seeds": (*JUNK[1:], "nan", "-1", "1.5", "1,x", ",", "1,1", "1;2", str(2**32)),
    "tta": (*JUNK[1:], ",", "flip,", "flip,x", "flip;shifts", "Flip"),
    "train_sizes": (
        *JUNK[1:], ",", "20", "20:", "20:0", "20:1", "5:0.5,6:0.4", "x:0.5", "0:0.5", "5:nan",
    ),
    "freeze": (*JUNK[1:], ",", "stem,", "stem,x", "stem;x", '"stem'),
    "hooks": (*JUNK[1:], ",", "stage_norms,", "stage_norms,x", "stage_norms;x", '"stage_norms'),
}  # fmt: skip
# Settings that are names in a table.
NAMES = ("net", "dataset", "loss", "optimizer", "schedule", "best_metric", "augment")


def bad_values(field: dataclasses.Field) -> list[str]:
    """Values that a setting cannot have, whatever else is asked for."""
    kind = kind_of(field)
    if field.name in LISTS:
        return list(LISTS[field.name])
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        more = [f(c) for c in choices for f in (str.upper, lambda c: c[:-1], lambda c: f"{c},{c}")]
        return [*JUNK, *more, *(f"{choice} " for choice in choices)]
    if field.name in NAMES:
        return list(JUNK)
    found = list(BY_TYPE[getattr(kind, "__origin__", kind)])
    for meta in getattr(kind, "__metadata__", ()):
        for name, beyond in (("gt", 0), ("ge", -1), ("lt", 0), ("le", 1)):
            if getattr(meta, name) is not None:
                found.append(str(getattr(meta, name) + beyond))
    return found


def misspelt(name: str, rng: random.Random, known) -> str:
    """A name with a letter lost, doubled or changed, that no flag has."""
    while True:
        i = rng.randrange(len(name))
        middle = rng.choice(("", name[i] * 2, rng.choice("abcxyz_-9é")))
        found = name[:i] + middle + name[i + 1 :]
        if found and found not in known and found.removeprefix("no") not in known:
            return found


def bad_command_lines(program: str) -> list[tuple[str, ...]]:
    """For every flag some values that it cannot have, misspellings, and what is no flag."""
    rng = random.Random(f"{SEED} {program}")
    fields = [x for x in dataclasses.fields(OPTIONS[program]) if not x.metadata["positional"]]
    names = [field.name for field in fields]
    found = []
    for field in fields:
        name, bad = field.name, bad_values(field)
        found += [(f"--{name}={value}",) for value in rng.sample(bad, min(6, len(bad)))]
        found += [(f"--{misspelt(name, rng, names)}={rng.choice(JUNK)}",) for _ in range(2)]
        found.append(rng.choice(((f"{name}=1",), ("--", f"--{name}=1"), (f"----{name}=1",))))
        if field.type is bool:
            found += [(f"--{name}", "true"), (f"--no{name}=x",)]
        else:
            found += [(f"--{name}",), (f"--no{name}",)]
    words = (
        "train",
        "-",
        "=",
        "--=",
        "--=1",
        "---",
        "-x",
        "--no",
        "☃",
        "\udcff",
        LONG,
        f"--{LONG}",
    )
    return found + [(word,) for word in words]


# What is found later, with the data, the net or the run. {x} are made by the test.
TRAIN_COMBINATIONS = (
    *(("--net=" + net,) for net in ("x", "resnet", "ResNet18", "resnet18 ", "☃", LONG)),
    *(("--dataset=" + name,) for name in ("x", "Digits", "digits,mnist", "☃", LONG)),
    *(("--optimizer=" + name,) for name in ("SGD", "nadam", "lossscaleoptimizer")),
    ("--batch_size=9", "--num_gpus=2"),
    ("--batch_size=8", "--accumulation=3"),
    ("--batch_size=8", "--num_gpus=2", "--accumulation=8"),
    ("--accumulation=1000000",),
    ("--device=gpu",),
    ("--jit", "--deterministic"),
    ("--jit", "--sync_batch_norm", "--num_gpus=2"),
    ("--warmup_epochs=1", "--epochs=1"),
    ("--warmup_epochs=9",),
    *(
        (f"--augment={text}",)
        for text in (
            "crop:8", "crop:4096", "crop:-1", "crop:x", "crop:", "crop:1:1", "crop:nan",
            f"crop:{10**30}", "flip:1", "Flip", "flip,x", "flip,", ",flip", "flip;crop:1", "|",
            "mixup:0.2|", "mixup:0.2|x", "mixup:-1", "mixup:nan", "mixup:inf", "mixup:0",
            "cutout:-1", "none,flip", "☃", LONG, "flip\x00",
        )
    ),
    ("--augment=mixup:0.2", "--batch_size=7"),
    ("--augment=cutmix:1", "--batch_size=7"),
    ("--num_classes=3",),
    ("--num_classes=1000000",),
    ("--init_from=keras",),
    ("--init_from=keras", "--net=resnet18"),
    ("--init_from=keras", "--net=resnet50"),
    ("--init_from=keras", "--net=resnet50", "--stem=small"),
    ("--init_from=keras", "--net=resnet50", "--image_size=32"),
    ("--init_from={missing}", "--net=resnet50", "--image_size=32"),
    ("--init_from={missing}", "--net=resnet18"),
    *(
        (f"--init_from={place}", "--net=resnet50", "--dataset=folder", "--data_dir={images}")
        for place in ("{missing}", "{file}", "{garbage}", "{foreign}", LONG)
    ),
    ("--init_from=~nobody-of-that-name/weights.h5",),
    *((f"--init_from={place}",) for place in ("{missing}", "{file}", "{garbage}", "{empty}", LONG)),
    *((f"--freeze={stages}",) for stages in ("x", "stem,", ",", "stem,stage_1,stage_2,head", LONG)),
    ("--freeze=head", "--head_learning_rate=1"),
    ("--net=inception_v3", "--stem=large"),
    ("--net=inception_v4", "--image_size=74", "--stem=large"),
    ("--net=inception_v3", "--image_size=6"),
    ("--net=resnet50", "--describe", "--image_size=1", "--stem=large"),
    ("--net=x", "--describe"),
    ("--val_fraction=0.5", "--dataset=folder", "--data_dir={single}"),
    ("--dataset=folder",),
    ("--dataset=folder", "--data_dir={foreign}"),
    ("--dataset=folder", "--data_dir={empty}"),
    ("--dataset=folder", "--data_dir={images}", "--augment=crop:64"),
    *((f"--data_dir={place}",) for place in ("{missing}", "{file}", "{file}/x", LONG)),
    ("--data_dir=~nobody-of-that-name/data",),
    *(
        (f"--run_dir={place}",)
        for place in ("{file}", "{file}/x/y", "{foreign}", "{run}/x", "{run}/best", LONG)
    ),
    ("--run_dir=~nobody-of-that-name/run",),
)  # fmt: skip
EVAL_COMBINATIONS = (
    ("--run_dir={missing}",),
    ("--run_dir={file}",),
    ("--run_dir={file}/x",),
    ("--run_dir={foreign}",),
    ("--run_dir={empty}",),
    ("--run_dir=" + LONG,),
    ("--run_dir=~nobody-of-that-name/run",),
    *(
        ("--run_dir={run}", *more)
        for more in (
            ("--follow", "--checkpoint=last"),
            ("--json={missing}/scores.json",),
            ("--json={foreign}",),
            ("--json={file}/scores.json",),
            ("--json={run}/config.json",),
            ("--json={run}/result.json",),
            ("--json=" + LONG,),
            ("--dataset=x",),
            ("--dataset=folder",),
            ("--dataset=folder", "--data_dir={empty}"),
            ("--dataset=folder", "--data_dir={images}"),
            ("--dataset=mnist", "--data_dir={missing}"),
            ("--dataset=mnist", "--data_dir={file}"),
            ("--data_dir={missing}",),
            ("--data_dir=" + LONG,),
            ("--device=gpu",),
            ("--checkpoint={missing}",),
            ("--checkpoint={file}",),
            ("--checkpoint={foreign}",),
            ("--checkpoint={garbage}",),
            ("--checkpoint=checkpoints/step-99",),
            ("--checkpoint=config.json",),
            ("--checkpoint=☃",),
            ("--checkpoint=" + LONG,),
        )
    ),
)


def bad_flag_files() -> list[bytes]:
    """What is no file of flags; {own} is the file's own path."""
    rng = random.Random(f"{SEED} files")
    garbage = [rng.randbytes(rng.randrange(20, 2000)) for _ in range(24)]
    return [
        *garbage,
        b"\xff\xfe\x00--\x00s\x00e\x00e\x00d",
        b"--seed=\xff\n",
        b"--seed=1\n--sead=2\n",
        b"--seed=one\n",
        b"--seed\n",
        b"\n# Nothing here.\n\n--num_gpus=0\n",
        b"--data_dir=a\x00b\n",
        b"--net=a\x00b\n",
        b"--run_dir=a\x00b\n",
        b"--flagfile={own}\n",
        b"--seed=1\n--flagfile={own}\n",
        b"--flagfile\n",
        b"--flagfile=\n--seed=x\n",
        b"--flagfile=/no/such/file\n",
        b"train.py --seed=1\n",
        b"# x\n" * 200_000 + b"--epochs=0\n",
        b"--seed=" + b"9" * 5_000_000,
        b"x" * 5_000_000,
        b"--step_epochs=" + b"1," * 100_000 + b"x\n",
    ]


_nested = json.loads("[" * 200 + "]" * 200)
JSON_JUNK = (
    None, True, 0, -1, 1.5, 10**30, -(10**300), 10**400, float("nan"), float("inf"), "", "x", "1",
    "\ud800", "a\x00b", "☃", LONG, [], {}, [1], [None], ["x", "x"], [[1]], {"a": {"b": []}},
    _nested,
)  # fmt: skip


def _without(content: dict, key) -> dict:
    return {k: v for k, v in content.items() if k != key}


def _dump(content) -> bytes:
    return json.dumps(content).encode()


def broken_text(text: bytes, rng: random.Random, count: int) -> list[bytes]:
    """A file that was cut, overwritten or replaced."""
    cut = [text[: rng.randrange(len(text) - 2)] for _ in range(count)]
    overwritten = []
    for _ in range(count):
        i = rng.randrange(len(text) - 40)
        overwritten.append(text[:i] + rng.randbytes(40) + text[i + 40 :])
    return [*cut, *overwritten]


OTHER_FILES = (
    b"", b" \n", b"null", b"[]", b"{}", b"3", b'"x"', b"NaN", b"{'settings': {}}", b"\x00" * 100,
    b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000, b'{"settings": {}, "data": {}}',
    b'{"settings": [], "data": []}', b"9" * 10_000, "☃".encode("utf-16"),
)  # fmt: skip


def mutated_objects(content: dict, rng: random.Random, junk: int) -> list[bytes]:
    """A JSON object with each key in turn deleted, or its value replaced."""
    found = [_dump(_without(content, key)) for key in content]
    for key in content:
        found += [_dump({**content, key: value}) for value in rng.sample(JSON_JUNK, junk)]
    return found


def mutated_configs(text: bytes) -> list[bytes]:
    """Configurations that were damaged; some are still good."""
    rng = random.Random(f"{SEED} config")
    config = json.loads(text)
    found = [*OTHER_FILES, *broken_text(text, rng, 15), *mutated_objects(config, rng, 6)]
    for part, junk in (("settings", 3), ("data", 8)):
        for mutated in mutated_objects(config[part], rng, junk):
            found.append(_dump({**config, part: json.loads(mutated)}))
    for mutated in mutated_objects(config["code"][0], rng, 4):
        found.append(_dump({**config, "code": [json.loads(mutated)]}))
    for field in ("image_shape", "mean", "std", "class_names"):
        for value in rng.sample(JSON_JUNK, 8):
            changed = [value, *config["data"][field][1:]]
            found.append(_dump({**config, "data": {**config["data"], field: changed}}))
    for field in ("examples", "fingerprints"):
        for mutated in mutated_objects(config["data"][field], rng, 3):
            found.append(_dump({**config, "data": {**config["data"], field: json.loads(mutated)}}))
    return found


# Settings of a saved run that contradict themselves or its data, each refused with the file's name;
# and what only data, net or checkpoint can refuse.
CONTRADICTIONS = (
    {"unheard_of": 1}, {"run_dir": "x"}, {"num_gpus": 3}, {"num_gpus": 64, "batch_size": 32},
    {"accumulation": 128}, {"image_size": 9}, {"batch_size": 1_000_001}, {"learning_rate": None},
    {"step_epochs": [15, True]}, {"net": "x"}, {"loss": "x"},
)  # fmt: skip
# Settings that scoring does not need.
TRAINING_CONTRADICTIONS = (
    {"jit": True, "deterministic": True}, {"hooks": ["x"]},
    *({name: "x"} for name in NAMES[3:]),
)  # fmt: skip
LATE_CONTRADICTIONS = (
    {"dataset": "x"}, {"dataset": "folder"}, {"net": "resnet20"},
    {"stem": "large", "net": "inception_v3"}, {"ema_decay": 0.5}, {"data_dir": "/no/such/place"},
)  # fmt: skip


def with_settings(text: bytes, changes: dict) -> bytes:
    """A configuration with some settings changed."""
    config = json.loads(text)
    return _dump({**config, "settings": {**config["settings"], **changes}})


def mutated_results(text: bytes) -> list[bytes]:
    """Results that were damaged; some are still good."""
    rng = random.Random(f"{SEED} result")
    return [
        *rng.sample(OTHER_FILES, 8), *broken_text(text, rng, 4),
        *mutated_objects(json.loads(text), rng, 2),
    ]  # fmt: skip


def mutated_lists(text: bytes) -> list[bytes]:
    """TensorFlow's list of checkpoints, damaged."""
    rng = random.Random(f"{SEED} list")
    return [
        b"", b"\x00\xff\xfe", b"{}", b'model_checkpoint_path: "/no/such/step-1"\n',
        b'model_checkpoint_path: "\\377"\n', b"model_checkpoint_path: 7\n",
        text + b"all_model_checkpoint_timestamps: 1.0\n", *broken_text(text, rng, 2),
    ]  # fmt: skip


def mutated_metrics(text: bytes) -> list[bytes]:
    """Rows of metrics, damaged: those that are none are left out."""
    rows = [
        b"[1]", b"{}", b"null", b'{"split": 1, "step": "x"}', b'{"split": "val", "step": null}',
        b'{"split": [], "step": [1]}', b'{"split": "val", "step": NaN}',
    ]  # fmt: skip
    return [b"\n".join(rows) + b"\n" + text, b"\xff\xfe\x00" + text[10:], b"[" * 100_000]
