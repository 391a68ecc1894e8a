"""With the weights of tf.keras.applications, our nets compute the same functions."""

import functools
import warnings
from unittest import mock

import h5py
import numpy as np
import pytest
import tensorflow as tf

import nets
from nets import pretrained

LONG = ("inception_v3", "inception_resnet_v2", "resnet101")
SIZES = {"inception_v3": 75, "inception_resnet_v2": 75}


@functools.cache
def keras_model(name, classes=7, **kwargs):
    """The Keras model with random weights, biases and statistics. No test changes it."""
    size = SIZES.get(name, 64)
    make = getattr(tf.keras.applications, pretrained._APPLICATIONS[name].keras_name)
    tf.keras.utils.set_random_seed(1)
    kwargs = {"input_shape": (size, size, 3), "classifier_activation": None, **kwargs}
    model = make(weights=None, classes=classes, **kwargs)
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name == "gamma":
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif weight.name == "moving_variance":
            # Low in the Inception nets, so that logits depend on the image after a hundred layers.
            low, high = (0.05, 0.25) if name in SIZES else (0.5, 1.5)
            weight.assign(generator.uniform(low, high, weight.shape))
        elif weight.name in ("moving_mean", "beta", "bias"):
            weight.assign(generator.normal(0, 0.1, weight.shape))
    return model


def build(name, classes=7):
    """A net to copy weights into. Its kernels are zeros, which is faster than random values."""
    size = SIZES.get(name, 64)
    zeros = mock.patch.object(tf.keras.initializers, "HeNormal", tf.keras.initializers.Zeros)
    with zeros:
        return nets.build(name, num_classes=classes, image_shape=(size, size, 3), stem="large")


@pytest.fixture(scope="module")
def resnet50():
    """A net that tests copy weights into."""
    return build("resnet50")


def pixels(size):
    return np.random.default_rng(3).uniform(0, 255, (3, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "resnet50_v2")),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in LONG),
    ],
)
def test_logits_are_those_of_keras(name):
    """On the same photos, normalized as for each net, up to float32 rounding."""
    model, net = keras_model(name), build(name)
    assert pretrained.copy_weights(name, model, net)
    rgb = pixels(SIZES.get(name, 64))
    mode = "caffe" if name in ("resnet50", "resnet101", "resnet152") else "tf"
    theirs = tf.keras.applications.imagenet_utils.preprocess_input(rgb.copy(), mode=mode)
    expected = model(theirs, training=False).numpy()
    mean, std = (np.array(x, np.float32) for x in pretrained.normalization(name))
    logits = net((rgb / 255 - mean) / std, training=False).numpy()
    # Relative to how much the logits differ between images.
    scale = np.abs(expected - expected.mean(0)).max()
    assert scale > 0.02 * np.abs(expected).max()
    assert np.abs(logits - expected).max() < 3e-4 * scale


@pytest.mark.slow
def test_every_weight_is_copied():
    model, net = keras_model("resnet50_v2"), build("resnet50_v2")
    before = [v.numpy() for v in net.variables]
    pretrained.copy_weights("resnet50_v2", model, net)
    for variable, old in zip(net.variables, before, strict=True):
        assert np.any(variable.numpy() != old), variable.path


@pytest.mark.slow
def test_another_number_of_classes_keeps_the_head():
    model, net = keras_model("resnet50"), build("resnet50", classes=4)
    net.freeze(("stem", "stage_4"))  # Stages that are not trained get weights too.
    head = net.head.dense.kernel.numpy()
    assert not pretrained.copy_weights("resnet50", model, net)
    np.testing.assert_array_equal(net.head.dense.kernel, head)
    kernel = model.get_layer("conv5_block3_3_conv").kernel
    np.testing.assert_array_equal(net.stage_4.block_2.residual.block_2.conv.conv.kernel, kernel)


@pytest.mark.parametrize(
    ("ending", "top"),
    [
        pytest.param(".h5", True, marks=pytest.mark.slow),
        pytest.param(".weights.h5", False, marks=pytest.mark.slow),
        pytest.param(".h5", False, marks=pytest.mark.slow),
        pytest.param(".weights.h5", True, marks=pytest.mark.slow),
    ],
)
def test_files(ending, top, resnet50, tmp_path):
    path = str(tmp_path / ("model" + ending))
    model = keras_model("resnet50") if top else keras_model("resnet50", include_top=False)
    (model.save if ending == ".h5" else model.save_weights)(path)
    # Keras' models have the layout of ~/.keras/keras.json, on which their weights do not depend.
    tf.keras.config.set_image_data_format("channels_first")
    try:
        loaded = pretrained.load("resnet50", path, channels=3, stem="large")
    finally:
        tf.keras.config.set_image_data_format("channels_last")
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert pretrained.copy_weights("resnet50", loaded, resnet50) is top


@pytest.mark.slow
def test_useless_weights_are_refused_by_name(tmp_path):
    def refused(match, name="resnet50", source="keras", channels=3, stem="large"):
        with pytest.raises(pretrained.PretrainedError, match=match):
            pretrained.load(name, source, channels=channels, stem=stem)

    refused("no Keras weights for resnet18, only for inception_v3, ", name="resnet18")
    refused("these have 1", channels=1)
    refused("not the small", stem="small")
    refused("/no/such is neither a file of weights nor the word keras", source="/no/such")
    (tmp_path / "text.h5").write_text("weights")
    refused("text.h5 is not an HDF5 file", source=str(tmp_path / "text.h5"))
    first_version = str(tmp_path / "first_version.weights.h5")
    keras_model("resnet50").save_weights(first_version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # There is one error and no warning.
        refused(
            "first_version.weights.h5 does not hold weights for resnet50_v2: A total of",
            "resnet50_v2",
            source=first_version,
        )
    other = tmp_path / "other.weights.h5"
    model = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(2)])
    model.save_weights(other)
    refused("other.weights.h5 does not hold weights for resnet50", source=str(other))


@pytest.mark.slow
def test_a_file_with_a_hole_is_refused(tmp_path):
    path = tmp_path / "hole.weights.h5"
    keras_model("resnet50", include_top=False).save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/batch_normalization_5"]
    with pytest.raises(pretrained.PretrainedError, match="does not hold weights for resnet50"):
        pretrained.load("resnet50", str(path), channels=3, stem="large")


@pytest.mark.slow
def test_a_model_that_does_not_fit_changes_nothing():
    model, net = keras_model("resnet50"), build("resnet18")
    before = [v.numpy() for v in net.variables]
    with pytest.raises(pretrained.PretrainedError, match="do not fit this net, resnet50"):
        pretrained.copy_weights("resnet50", model, net)
    for variable, old in zip(net.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)
