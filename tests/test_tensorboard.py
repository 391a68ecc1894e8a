"""What TensorBoard's own server answers about a run that was killed and resumed."""

import json
import logging
import signal
import time
import urllib.parse
import urllib.request

import pytest
from tensorboard import default, program
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from loops.records.checkpoint_files import saved_steps
from tests.commands import helpers
from tests.commands.helpers import TINY, Command, finish, read, rows

pytestmark = pytest.mark.slow

# 6 or 5 steps an epoch; 26 in all.
FLAGS = (
    *TINY, "--epochs=5", "--log_steps=4", "--histogram_steps=5", "--picture_epochs=2",
    "--save_minutes=0.00001",
)  # fmt: skip
STEPS = 26
EVALUATED = [6, 11, 16, 21, 26]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The directory of the run, in a directory of runs."""
    run_dir = tmp_path_factory.mktemp("runs") / "a_run"
    args = ("train.py", *FLAGS, f"--run_dir={run_dir}")
    with helpers.tiny_net(draws=True):
        command = Command(*args, draws=True)
        while max(saved_steps(run_dir / "checkpoints"), default=-1) < 13:
            assert command.returncode is None, command.printed()
            time.sleep(0.001)
        command.send_signal(signal.SIGKILL)
        assert command.wait()[0] == -signal.SIGKILL
        finish(Command(*args, draws=True))
    return run_dir


@pytest.fixture(scope="module", params=["fast", "slow"])
def get(request, run_dir):
    """Asks a server that reads with the data server in Rust, or in Python."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    board = program.TensorBoard(default.get_plugins())
    fast = "true" if request.param == "fast" else "false"
    board.configure(argv=[None, f"--logdir={run_dir.parent}", "--port=0", f"--load_fast={fast}"])
    url = board.launch()

    def get(path, **query):
        query = f"?{urllib.parse.urlencode(query)}" if query else ""
        with urllib.request.urlopen(f"{url}data/{path}{query}", timeout=30) as answer:
            return answer.read()

    deadline = time.monotonic() + 60
    while b"a_run/test" not in get("runs"):  # It reads in the background.
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    return lambda path, **query: json.loads(get(path, **query)) if path[-1] != "e" else get(path)


RUN = "a_run"


def steps(get, plugin, run, tag):
    """The steps of the points of a tag, in order; for histograms too."""
    kind = {"scalars": "scalars", "histograms": "histograms"}[plugin]
    return [point[1] for point in get(f"plugin/{plugin}/{kind}", run=run, tag=tag)]


def test_every_row_is_one_point_and_splits_share_tags(get, run_dir):
    tags = get("plugin/scalars/tags")
    assert tags.keys() == {RUN, f"{RUN}/train", f"{RUN}/val", f"{RUN}/test"}
    shared = {"curves/loss", "curves/top_1_accuracy", "curves/top_1_error",
              "metrics/top_5_accuracy", "metrics/expected_calibration_error"}  # fmt: skip
    own = {"optimization/learning_rate", "optimization/gradient_norm", "optimization/weight_norm",
           "speed/images_per_second", "speed/waiting_for_data"}  # fmt: skip
    assert set(tags[f"{RUN}/train"]) >= shared | own
    assert set(tags[f"{RUN}/val"]) == set(tags[f"{RUN}/test"]) == shared
    for split in ("train", "val", "test"):
        found = get("plugin/scalars/scalars", run=f"{RUN}/{split}", tag="curves/loss")
        assert [step for _, step, _ in found] == [row["step"] for row in rows(run_dir, split)]
        losses = [row["loss"] for row in rows(run_dir, split)]
        assert [value for *_, value in found] == pytest.approx(losses)
    assert [row["step"] for row in rows(run_dir, "val")] == EVALUATED


def test_the_layout(get):
    charts = [
        (category["title"], [chart["multiline"]["tag"] for chart in category["chart"]])
        for category in get("plugin/custom_scalars/layout")["category"]
    ]
    assert [title for title, _ in charts] == ["Loss and accuracy", "Optimization", "Speed"]
    assert charts[0][1][:2] == [["^curves/loss$"], ["^curves/top_1_accuracy$"]]
    found = get("plugin/custom_scalars/scalars", run=f"{RUN}/val", tag="^curves/loss$")
    assert [step for _, step, _ in found["tag_to_events"]["curves/loss"]] == EVALUATED


def test_images(get, run_dir):
    tags = get("plugin/images/tags")
    two = {"pictures/confusion_matrix", "pictures/mistakes"}
    assert {run: set(found) for run, found in tags.items() if found} == {
        f"{RUN}/train": {"pictures/augmentations"}, f"{RUN}/val": two, f"{RUN}/test": two,
    }  # fmt: skip
    best = read(run_dir / "result.json")["step"]
    for split, tag, expected in (
        ("train", "pictures/augmentations", [0]),
        ("val", "pictures/confusion_matrix", [11, 21, STEPS]),
        ("val", "pictures/mistakes", [11, 21, STEPS]),
        ("test", "pictures/mistakes", [best]),
    ):
        found = get("plugin/images/images", run=f"{RUN}/{split}", tag=tag, sample=0)
        assert [image["step"] for image in found] == expected
        png = get(f"plugin/images/individualImage?{found[-1]['query']}&as=image")
        assert png.startswith(b"\x89PNG\r\n")


def test_texts(get):
    assert set(get("plugin/text/tags")[RUN]) == {"configuration", "net"}
    (text,) = get("plugin/text/text", run=RUN, tag="configuration")
    assert text["step"] == 0
    assert "<td>batch_size</td>\n<td>256</td>" in text["text"]
    (text,) = get("plugin/text/text", run=RUN, tag="net")
    assert "<pre><code>stage    output" in text["text"]


def test_histograms(get):
    tags = get("plugin/histograms/tags")
    kinds = ("stage_activations", "stage_gradients", "stage_weights")
    expected = {f"{kind}/{stage}" for kind in kinds for stage in ("stem", "stage_1", "head")}
    assert {run: set(found) for run, found in tags.items() if found} == {f"{RUN}/train": expected}
    for tag in expected:
        assert steps(get, "histograms", f"{RUN}/train", tag) == [5, 10, 15, 20, 25]


def test_hparams(get, run_dir):
    """One row for the run, with its settings and its scores."""
    experiment = get("plugin/hparams/experiment", request="{}")
    kinds = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    assert kinds["net"] == "DATA_TYPE_STRING"
    assert kinds["learning_rate"] == "DATA_TYPE_FLOAT64"
    names = [metric["displayName"] for metric in experiment["metricInfos"]]
    assert names[:3] == [
        "best val top-1 accuracy", "last val top-1 accuracy", "test top-1 accuracy",
    ]  # fmt: skip
    query = {
        "allowedStatuses": ["STATUS_SUCCESS"],
        "colParams": [
            {"metric": metric["name"], "includeInResult": True}
            for metric in experiment["metricInfos"]
        ]
        + [{"hparam": name, "includeInResult": True} for name in ("net", "batch_size")],
        "sliceSize": 10,
    }
    (group,) = get("plugin/hparams/session_groups", request=json.dumps(query))["sessionGroups"]
    assert (group["name"], group["hparams"]["net"], group["hparams"]["batch_size"]) == (
        RUN, "tiny", 256,
    )  # fmt: skip
    values = {(m["name"].get("group", ""), m["name"]["tag"]): m for m in group["metricValues"]}
    result, val = read(run_dir / "result.json"), {row["step"]: row for row in rows(run_dir, "val")}
    for (group, tag), row in {
        ("", "result/best_val_top_1_accuracy"): val[result["step"]],
        ("", "result/best_val_loss"): val[result["step"]],
        ("val", "curves/top_1_accuracy"): val[STEPS],
        ("test", "curves/top_1_accuracy"): result,
    }.items():
        name = tag.rpartition("/")[2].removeprefix("best_val_")
        assert values[group, tag]["value"] == pytest.approx(row[name]), (group, tag)


def test_two_workers_make_histograms_and_pictures(tmp_path):
    """What only the chief writes must not need the other worker."""
    args = ("train.py", *TINY, "--epochs=1", "--histogram_steps=2", "--picture_epochs=1")
    args += (f"--run_dir={tmp_path / 'run'}",)
    finish(*(Command(*args, draws=True, **task) for task in helpers.free_cluster(2)))
    assert read(tmp_path / "run" / "result.json")["examples"] == 359
    found = EventAccumulator(str(tmp_path / "run" / "train"), size_guidance={"tensors": 0}).Reload()
    tags = set(found.Tags()["tensors"])
    assert {"stage_activations/stage_1", "stage_gradients/head", "pictures/augmentations"} <= tags
    assert [event.step for event in found.Tensors("stage_activations/stage_1")] == [2, 4, 6]
