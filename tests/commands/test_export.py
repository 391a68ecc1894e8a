"""Exported models answer as the run's net, without this project, whatever the images' size."""

import ast
import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import nets
from commands import export, verification, verify_export
from commands.exported import ExportedModel, fit_bilinear, fit_like_data, write_tflite
from commands.run import Run
from data.dataset import normalize
from data.decode import PNG, decode
from loops.errors import RunError
from loops.records.run import OWN
from loops.variables import named_variables
from nets.fold import fold
from nets.layers import ConvBatchNorm
from tests.commands import helpers
from tests.commands.helpers import TINY, call, contents, read, real, refused

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


@pytest.fixture(autouse=True, scope="module")
def tiny_net():
    with helpers.tiny_net() as net:
        yield net


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with averages of the weights."""
    run_dir = tmp_path_factory.mktemp("run") / "run"
    call("train.py", *TINY, "--epochs=3", "--ema_decay=0.5", f"--run_dir={run_dir}")
    return Run.open(run_dir)


@pytest.fixture(scope="module")
def expected(run):
    """Test images, uint8, and the probabilities of the run's net for them."""
    source, net = run.dataset().splits["test"], run.net()
    images = source.fetch(tf.range(len(source.labels), dtype=tf.int64))
    logits = net(normalize(images, run.data.mean, run.data.std), training=False)
    return images.numpy(), tf.nn.softmax(logits).numpy()


def answers(run, fitted):
    """Probabilities of the run's net for images of its size, float32 pixels from 0 to 255."""
    return tf.nn.softmax(run.net()(normalize(fitted, run.data.mean, run.data.std), training=False))


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 1), np.uint8)


# Any number of images of several sizes, among them higher and wider ones, and smaller ones.
SHAPES = ((1, 8, 8), (3, 20, 13), (2, 7, 30), (1, 1, 1), (5, 4, 6))


@pytest.fixture(scope="module")
def saved_model(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved_model") / "model"
    assert call("export.py", f"--run_dir={run.path}", "--noverify", out) is None
    return out


@pytest.fixture(scope="module")
def tflite(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("tflite") / "model.tflite"
    call("export.py", f"--run_dir={run.path}", "--format=tflite", "--noverify", out)
    return out


@pytest.mark.slow
def test_saved_model(run, expected, saved_model):
    loaded = tf.saved_model.load(str(saved_model))
    (signature,) = loaded.signatures.values()
    assert signature.structured_input_signature[1] == {
        "images": tf.TensorSpec((None, None, None, 1), tf.uint8, name="images")
    }
    images, probabilities = expected
    outputs = signature(images=tf.constant(images))
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=2e-6)
    assert [name.decode() for name in outputs["classes"].numpy()] == list(run.data.class_names)
    labels = (saved_model / "assets" / "labels.txt").read_text()
    assert labels.splitlines() == list(run.data.class_names)
    for shape in SHAPES:
        images = random_images(*shape)
        found = signature(images=tf.constant(images))["probabilities"]
        fitted = fit_like_data(tf.constant(images), run.data.image_shape)
        np.testing.assert_allclose(found, answers(run, fitted), atol=2e-6)


@pytest.mark.slow
def test_a_saved_model_holds_what_it_uses(run, saved_model):
    """The folded kernels once, and of the variables only the dense layer."""
    names = [name for name, _ in tf.train.list_variables(saved_model / "variables" / "variables")]
    shapes = [s for n, s in tf.train.list_variables(saved_model / "variables" / "variables") if s]
    assert sorted(shapes) == [[10], [16, 10]], names
    kernels = 4 * (3 * 3 * 1 * 8 + 3 * 3 * 8 * 16)
    graph = (saved_model / "saved_model.pb").read_bytes()
    net = run.net()
    fold(net)
    kernel = net.stage_1.folded_kernel.tobytes()
    assert graph.count(kernel) == 1
    assert len(graph) < kernels + 40_000


@pytest.mark.slow
def test_tflite(run, expected, tflite):
    predict = verify_export.load_tflite(str(tflite))
    images, probabilities = expected
    np.testing.assert_allclose(predict(images), probabilities, atol=2e-6)
    for shape in SHAPES:
        images = random_images(*shape)
        fitted = fit_bilinear(tf.constant(images), run.data.image_shape)
        np.testing.assert_allclose(predict(images), answers(run, fitted), atol=2e-6)
    with zipfile.ZipFile(tflite) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(run.data.class_names)


def test_images_are_scaled_as_in_training(tmp_path):
    """As `data` does with a file, of 20x13 pixels, and as it leaves those of the net's size."""
    for size, wanted in (((20, 13), 8), ((5, 9), 8), ((8, 8), 8)):
        pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        image_shape = (wanted, wanted, 3)
        file = tf.constant(str(tmp_path / "image.png"))
        trained = decode(file, tf.constant(PNG), tf.constant(1), image_shape)
        found = fit_like_data(tf.constant(pixels[None]), image_shape)
        np.testing.assert_array_equal(found[0], trained)


def test_the_middle_is_cut_to_the_shape():
    """For nets whose images are not square, too."""
    stripes = np.repeat(np.uint8([10, 20, 30, 40, 50, 60]), 2)  # Columns.
    images = np.broadcast_to(stripes[None, None, :, None], (1, 4, 12, 1))
    for fit in (fit_like_data, fit_bilinear):
        np.testing.assert_allclose(fit(tf.constant(images), (4, 8, 1))[0, 0, :, 0], stripes[2:10])
    # Blocks of 2x2 pixels are averaged; of 6 columns the middle 4 are used.
    images = np.uint8([[9, 0, 4, 8, 16, 9], [9, 0, 4, 0, 0, 9]] * 2)[None, :, :, None]
    np.testing.assert_allclose(
        fit_bilinear(tf.constant(images), (2, 2, 1))[0, ..., 0], [[2, 6]] * 2
    )


def test_weights_as_text(run, tmp_path):
    file = tmp_path / "weights.txt"
    assert call("export.py", f"--run_dir={run.path}", f"--weights_txt={file}") is None
    # What the file itself says.
    code = [
        line.removeprefix("#   ") for line in file.read_text().splitlines() if line[:4] == "#   "
    ]
    scope = {"np": np, "open": lambda name, encoding: (tmp_path / name).open(encoding=encoding)}
    exec("\n".join(code), scope)
    wanted = {name: v for name, v in named_variables(run.net()).items() if v.trainable}
    assert scope["weights"].keys() == wanted.keys()
    assert "stage_1/conv/conv/kernel" in wanted
    for name, variable in wanted.items():
        np.testing.assert_array_equal(scope["weights"][name], variable.numpy())
        assert scope["weights"][name].dtype == np.float32


class OtherAnswers:
    """In place of `fresh_answers`: those of the net, and `error` in one of them."""

    def __init__(self, expected, error):
        self.found = expected[1].copy()
        self.found[5, 3] += error

    def __call__(self, format, model, images):
        assert model.exists()
        assert len(np.load(images)) == len(self.found)
        return self.found


@pytest.mark.slow
def test_other_answers_are_an_error(run, expected, tmp_path, monkeypatch, capsys):
    args = ("export.py", f"--run_dir={run.path}", tmp_path / "model")
    for error in (2e-4, np.nan):
        monkeypatch.setattr(verification, "fresh_answers", OtherAnswers(expected, error))
        message = refused(capsys, *args)
        assert "does not answer as the run" in message
        assert "a difference of 0.0001 is accepted" in message
        assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(verification, "fresh_answers", OtherAnswers(expected, 5e-5))
    found = call(*args)
    accuracy = run.result["top_1_accuracy"]
    assert found.examples == 359
    assert found.difference == pytest.approx(5e-5, abs=1e-6)
    assert found.accuracy == found.expected_accuracy == pytest.approx(accuracy)
    printed = capsys.readouterr().out
    assert "checked  359 test images in a new process: largest difference 5e-05" in printed
    assert f"top-1 {accuracy:.2%} (the run {accuracy:.2%})" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("wrong", "accepted"), [(3, True), (4, False)])
def test_int8_may_lose_a_point_of_accuracy(wrong, accepted, tmp_path, monkeypatch):
    """Of 359 examples, 3 are 0.84%, and 4 are 1.11%."""
    probabilities = np.tile(np.float32([0.9, 0.1]), (359, 1))
    labels = np.zeros(359, np.int32)
    expected = verification.Expected(tmp_path, probabilities, labels, accuracy=1.0)
    found = probabilities.copy()
    found[:wrong] = [0.4, 0.6]
    monkeypatch.setattr(verification, "fresh_answers", lambda *_: found)
    options = export.ExportOptions(format="tflite", int8=True)
    if accepted:
        assert verification.check(options, tmp_path, expected).accuracy == 356 / 359
    else:
        with pytest.raises(RunError, match=r"a loss of 1\.00% of top-1 is accepted"):
            verification.check(options, tmp_path, expected)


def test_what_is_refused(run, tmp_path, capsys, monkeypatch):
    before = contents(run.path)
    (tmp_path / "there").touch()
    at, here = f"--run_dir={run.path}", tmp_path / "model"
    cases = {
        "--run_dir is required": [here],
        "OUT is required": [at],
        "one OUT is expected, not 2": [at, here, tmp_path / "b"],
        "--int8 is for --format=tflite": [at, here, "--int8"],
        "there exists already": [at, tmp_path / "there"],
        "there is no directory": [at, tmp_path / "a" / "b"],
        "m.tflite is a name for --format=tflite, not saved_model": [at, tmp_path / "m.tflite"],
        "OUT and --weights_txt are both": [at, here, f"--weights_txt={here}"],
        "is not a run directory": [f"--run_dir={tmp_path}", here],
        "no checkpoint at": [at, here, "--checkpoint=nowhere"],
    }
    for message, args in cases.items():
        assert message in refused(capsys, "export.py", *args)
    for name in OWN:
        place = run.path / name
        place = place / "model" if place.is_dir() else place
        message = "exists already" if place.exists() else f"{name} belongs to the run"
        assert message in refused(capsys, "export.py", at, place)
    found = importlib.util.find_spec("os")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else found
    )
    assert "pip install tf2onnx\n" in refused(capsys, "export.py", at, here, "--format=onnx")
    assert contents(run.path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_export_that_ends_early_leaves_nothing(run, tmp_path, monkeypatch, capsys, error):
    def half(model, path, calibration):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(export, "write_tflite", half)
    args = ("export.py", f"--run_dir={run.path}", "--format=tflite", "--noverify", tmp_path / "m")
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            call(*args)
    else:
        assert f"cannot write {tmp_path / 'm'}: No space left on device" in refused(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def test_the_script_that_verifies_imports_nothing_of_the_project():
    tree = ast.parse(pathlib.Path(verify_export.__file__).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert names == {"os", "sys", "numpy", "tensorflow", "onnxruntime"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    command = "import sys; sys.path.append(sys.argv[1]); import verify_export; print(*sys.modules)"
    directory = pathlib.Path(verify_export.__file__).parent
    run = [sys.executable, "-I", "-c", command, directory]
    loaded = subprocess.run(run, capture_output=True, text=True, check=True, cwd="/").stdout.split()
    assert not {"commands", "nets", "data", "loops"} & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["saved_model", "tflite"])
def test_in_a_new_process(run, tmp_path, capsys, format, monkeypatch):
    args = ("export.py", f"--run_dir={run.path}", f"--format={format}", tmp_path / "model")
    found = call(*args)
    assert found.examples == 359
    assert found.difference < 1e-5
    assert found.accuracy == pytest.approx(run.result["top_1_accuracy"])
    # A mistake is found.
    right = ConvBatchNorm.fold

    def wrong(layer):
        right(layer)
        layer.folded_bias = layer.folded_bias + np.float32(0.01)

    monkeypatch.setattr(ConvBatchNorm, "fold", wrong)
    assert "does not answer as the run" in refused(capsys, *args[:-1], tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_onnx(run, tmp_path, expected):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    found = call("export.py", f"--run_dir={run.path}", "--format=onnx", out)
    assert found.difference < 1e-5
    session = onnxruntime.InferenceSession(out)
    (images,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["n", "height", "width", 1])
    assert (probabilities.name, probabilities.shape) == ("probabilities", ["n", 10])
    names = json.loads(session.get_modelmeta().custom_metadata_map["names"])
    assert names == list(run.data.class_names)
    predict = verify_export.load_onnx(str(out))
    np.testing.assert_allclose(predict(expected[0]), expected[1], atol=2e-6)
    for shape in SHAPES:
        images = random_images(*shape)
        fitted = fit_bilinear(tf.constant(images), run.data.image_shape)
        np.testing.assert_allclose(predict(images), answers(run, fitted), atol=2e-6)


@pytest.mark.exhaustive
def test_as_users_do(tmp_path):
    """A run of a net in the table, in bfloat16 with averages; then exports to TFLite."""
    flags = ("--net=inception10", "--dataset=digits", "--batch_size=32", "--ema_decay=0.98")
    run_dir = tmp_path / "run"
    code, *_ = real(
        "train.py", *flags, "--epochs=3", "--precision=mixed_bfloat16", f"--run_dir={run_dir}"
    )
    assert code == 0
    # With less, a mistake in 8 bits would cost little.
    assert read(run_dir / "result.json")["top_1_accuracy"] > 0.8
    at = f"--run_dir={run_dir}"
    for args in (["--format=tflite", "m.tflite"], ["--format=tflite", "--int8", "8"]):
        code, out, error = real("export.py", at, *args, cwd=tmp_path)
        assert (code, error) == (0, "")
        assert "checked  359 test images in a new process" in out
        assert "(trained in mixed_bfloat16)" in out
    size = {name: (tmp_path / name).stat().st_size for name in ("m.tflite", "8")}
    assert size["8"] < 0.45 * size["m.tflite"]
    code, out, error = real("export.py", at, "--format=tflite", "8", cwd=tmp_path)
    assert (code, out, error.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("inception_v1", marks=pytest.mark.exhaustive),
        pytest.param("resnet50_v2", marks=pytest.mark.exhaustive),
        pytest.param("speednet", marks=pytest.mark.slow),
    ],
)
def test_auxiliary_heads_are_left_out_and_other_batch_norms_kept(name, run, tmp_path):
    """Of the variables of a net, those are in the model that its answer depends on."""
    shape = (9, 9, 1)
    net = nets.build(name, num_classes=10, image_shape=shape, stem="small", batch_norm_momentum=0.0)
    images = random_images(64, 9, 9)
    normalized = normalize(images, run.data.mean, run.data.std)
    net(normalized, training=True, seed=(0, 1))  # Statistics with which logits are not huge.
    images, normalized = images[:4], normalized[:4]
    probabilities = tf.nn.softmax(net(normalized, training=False))
    net.auxiliary = ()
    fold(net)
    info = dataclasses.replace(run.data, image_shape=shape)
    model = ExportedModel(net, info, with_tensorflow=False)
    used = {variable.name.rpartition("/")[2].partition(":")[0] for variable in model.weights}
    assert not [v for v in model.weights if "auxiliary" in v.name]
    assert ("gamma" in used) == (name != "inception_v1")
    write_tflite(model, tmp_path / "model")
    predict = verify_export.load_tflite(str(tmp_path / "model"))
    np.testing.assert_allclose(predict(images), probabilities, atol=1e-4)
    assert np.ptp(probabilities, axis=0).max() > 1e-3
