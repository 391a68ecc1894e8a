"""Datasets of TensorFlow Datasets. Those that need the library are skipped without it."""

import importlib.util
import json
import shutil

import numpy as np
import pytest

import data
from data.source import ArraySource, Subset
from data.tfds_directory import check_features, find_prepared
from tests.data.helpers import encoded, fetch, photo, pixels, refused

installed = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tensorflow_datasets", "array_record"))),
    reason="tensorflow-datasets and array_record are not required",
)


@pytest.fixture(autouse=True)
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


def prepare(data_dir, splits, *, shape=(8, 6, 3), file_format="array_record", **features):
    """Writes a dataset as `download_and_prepare` does, without a network.

    Args:
        splits: by name, images and labels.
    """
    import tensorflow_datasets as tfds

    def examples(pairs):
        for number, (image, label) in enumerate(pairs):
            yield number, {"image": image, "label": label}

    tfds.dataset_builders.store_as_tfds_dataset(
        name="colors",
        version="1.2.0",
        config=None,
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=shape),
             "label": tfds.features.ClassLabel(names=["red", "green", "blue"])} | features
        ),
        split_datasets={name: examples(pairs) for name, pairs in splits.items()},
        data_dir=data_dir,
        file_format=file_format,
        disable_shuffling=True,
    )  # fmt: skip
    return data_dir


def arrays(count, shape=(8, 6, 3), seed=0):
    return [(image, i % 3) for i, image in enumerate(pixels(count, *shape, seed=seed))]


def files(directory, count, seed=0):
    """Photographs of different sizes, as JPEG files."""
    directory.mkdir(parents=True)
    for i in range(count):
        path = directory / f"{i}.jpg"
        path.write_bytes(encoded(photo(20 + i, 30, seed=seed + i), format="JPEG"))
        yield str(path), i % 3


@installed
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_small_images_are_in_memory(tmp_path, file_format):
    splits = {"train": arrays(9), "test": arrays(3, seed=1)}
    dataset = data.load(
        "tfds:colors", data_dir=prepare(tmp_path / "tfds", splits, file_format=file_format)
    )
    assert (dataset.name, list(dataset.class_names)) == ("colors", ["red", "green", "blue"])
    for name, pairs in splits.items():
        source = dataset.splits[name]
        assert isinstance(source, ArraySource)
        assert source.labels.tolist() == [label for _, label in pairs]
        np.testing.assert_array_equal(
            fetch(source, range(len(pairs))), [image for image, _ in pairs]
        )
    everything = np.stack([image for image, _ in splits["train"]]).reshape(-1, 3) / 255
    np.testing.assert_allclose(dataset.mean, everything.mean(axis=0), atol=6e-4)
    np.testing.assert_allclose(dataset.std, everything.std(axis=0), atol=6e-4)
    assert not (tmp_path / "keras").exists()


@installed
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_others_are_in_files_which_are_written_once(tmp_path, monkeypatch, file_format):
    splits = {"train": list(files(tmp_path / "a", 6)), "test": list(files(tmp_path / "b", 3, 9))}
    place = prepare(tmp_path / "tfds", splits, shape=(None, None, 3), file_format=file_format)
    dataset = data.load("tfds:colors", data_dir=place, image_size=12)
    train = dataset.splits["train"]
    # By class, and within a class in their order.
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for number, original in enumerate((0, 3, 1, 4, 2, 5)):
        path = tmp_path / "a" / f"{original}.jpg"
        with open(train.describe(number), "rb") as file:
            assert file.read() == path.read_bytes()
    assert fetch(dataset.splits["test"], range(3)).shape == (3, 12, 12, 3)
    monkeypatch.setattr("tempfile.mkdtemp", None)
    again = data.load("tfds:colors", data_dir=place)
    assert again.splits["train"].fingerprint() == train.fingerprint()
    assert again.image_shape == (64, 64, 3)
    (made,) = (tmp_path / "keras" / "datasets" / "tfds").iterdir()
    assert sorted(path.name for path in made.iterdir()) == ["test", "train"]
    # Where some of them have been removed, as by a program that cleans up, it is not used.
    for path in (made / "train" / "00000").iterdir():
        path.unlink()
    refused("train has 4 images, and train of tfds:colors 6; remove the directory",
            data.load, "tfds:colors", data_dir=place)  # fmt: skip
    monkeypatch.undo()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    shutil.rmtree(made / "train")
    assert len(data.load("tfds:colors", data_dir=place).splits["train"].labels) == 6


@installed
def test_splits(tmp_path):
    def load(name, splits, **options):
        place = prepare(tmp_path / name, {x: arrays(6, seed=i) for i, x in enumerate(splits)})
        dataset = data.load("tfds:colors", data_dir=place, **options)
        return dataset, {name: fetch(x, [0])[0] for name, x in dataset.splits.items()}

    def first(seed):
        return arrays(1, seed=seed)[0][0]

    dataset, images = load("three", ("train", "validation", "test"), val_fraction=0.1)
    np.testing.assert_array_equal(images["val"], first(1))
    np.testing.assert_array_equal(images["test"], first(2))
    assert len(dataset.splits["train"].labels) == 6
    assert "nothing is held out" in dataset.note
    dataset, images = load("two", ("train", "validation"), val_fraction=0.1)
    np.testing.assert_array_equal(images["test"], first(1))
    assert {k: len(x.labels) for k, x in dataset.splits.items()} == {
        "train": 3, "test": 6, "val": 3,
    }  # fmt: skip
    assert "validation of tfds:colors is the test split" in dataset.note
    dataset, _ = load("one", ("train",))
    assert isinstance(dataset.splits["test"], Subset)
    assert {k: len(x.labels) for k, x in dataset.splits.items()} == {"train": 3, "test": 3}
    place = prepare(tmp_path / "none", {"test": arrays(3)})
    refused(
        "tfds:colors has no split train with labels; it has test",
        data.load,
        "tfds:colors",
        data_dir=place,
    )
    # To be scored, it needs no other split.
    source, _ = data.load_split(
        "tfds:colors", "test", class_names=("blue", "green", "red"), image_shape=(4, 4, 3),
        data_dir=place,
    )  # fmt: skip
    assert source.labels.tolist() == [2, 1, 0]
    assert source.image_shape == (4, 4, 3)


@installed
def test_a_split_without_labels_is_none(tmp_path):
    """As the test split of ImageNet is."""
    splits = {"train": arrays(6), "validation": arrays(3), "test": [(arrays(1)[0][0], -1)]}
    dataset = data.load("tfds:colors", data_dir=prepare(tmp_path / "tfds", splits))
    assert {k: len(x.labels) for k, x in dataset.splits.items()} == {"train": 6, "test": 3}


@installed
@pytest.mark.parametrize("shape", [(8, 6, 3), (None, None, 3)])
def test_an_example_without_a_label_is_named(tmp_path, shape):
    images = [image for image, _ in arrays(3)]
    splits = {"train": list(zip(images, (-1, 1, 2), strict=True)), "test": arrays(3)}
    place = prepare(tmp_path / "tfds", splits, shape=shape)
    refused(r"colors: example 0 of train has no label \(-1\), and others have; every example",
            data.load, "tfds:colors", data_dir=place)  # fmt: skip


@installed
def test_damaged_records_are_named_without_decoration(tmp_path):
    place = prepare(tmp_path / "tfds", {"train": arrays(3)}, file_format="tfrecord")
    (record,) = place.rglob("*tfrecord-*")
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2])
    message = refused("1.2.0 cannot be read: truncated record at",
                      data.load, "tfds:colors", data_dir=place)  # fmt: skip
    assert "{{" not in message
    assert "[Op:" not in message


@installed
def test_what_is_not_for_image_classification_is_refused(tmp_path):
    import tensorflow_datasets as tfds

    def place(name, **options):
        return prepare(tmp_path / name, {"train": arrays(3, shape=(8, 6, 1))}, **options)

    def refuse(match, place):
        refused(match, data.load, "tfds:colors", data_dir=place)

    refuse("images must be uint8 .* not uint16",
           prepare(tmp_path / "deep",
                   {"train": [(np.zeros((4, 4, 1), np.uint16), 0)]},
                   image=tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16)))  # fmt: skip
    features = {"image": tfds.features.Tensor(shape=(8, 6, 1), dtype=np.uint8)}
    refuse("needs an image and a class label, and has image, label", place("tensor", **features))
    damaged = place("damaged", shape=(8, 6, 1))
    (record,) = damaged.rglob("*array_record-*")
    record.write_bytes(record.read_bytes()[:40])
    refuse("1.2.0 cannot be read: ", damaged)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is not None, reason="the library is there"
)
def test_without_the_library():
    refused("pip install tensorflow-datasets array_record", data.load, "tfds:cifar10")


def test_which_directory_it_is(tmp_path, monkeypatch):
    def make(place):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "dataset_info.json").write_text("{}")
        (tmp_path / place / "features.json").write_text("{}")

    for place in ("colors/9.0.0", "colors/10.0.0", "colors/incomplete.X_11.0.0", "sized/big/1.0.0"):
        make(place)
    assert find_prepared("tfds:colors", tmp_path) == tmp_path / "colors" / "10.0.0"
    assert find_prepared("tfds:colors:9.0.0", tmp_path) == tmp_path / "colors" / "9.0.0"
    assert find_prepared("tfds:sized", tmp_path) == tmp_path / "sized" / "big" / "1.0.0"
    make("sized/small/1.0.0")
    refused("several configurations; choose one of sized/big, sized/small",
            find_prepared, "tfds:sized", tmp_path)  # fmt: skip
    assert find_prepared("tfds:sized/small", tmp_path).parent.name == "small"
    message = refused("version 8.0.0 of tfds:colors:8.0.0 is not prepared",
                      find_prepared, "tfds:colors:8.0.0", tmp_path)  # fmt: skip
    assert 'tfds.builder("colors").download_and_prepare(file_format="array_record")' in message
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "typo"))
    refused(f"tfds:colors is not prepared in {tmp_path}/typo; ", find_prepared, "tfds:colors", None)
    # Names that tfds would load other packages for.
    for name in ("", "huggingface:glue", "ns:colors", "../colors", "colors/../../x", "colors/.."):
        refused("is not tfds:NAME|is not prepared", find_prepared, f"tfds:{name}", tmp_path)


@pytest.mark.parametrize("key", ["pythonClassName", "type", "python_class_name"])
def test_code_that_a_dataset_names_is_not_imported(tmp_path, key):
    path = tmp_path / "features.json"
    good = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
    path.write_text(json.dumps({**good, "x": [{"type": {"y": good}}]}))
    check_features("tfds:colors", path)
    path.write_text(json.dumps({**good, "x": [{"type": {"y": {key: "antigravity.Feature"}}}]}))
    refused("a feature of its own, antigravity.Feature", check_features, "tfds:colors", path)
    path.write_text("{")
    refused("features.json cannot be read", check_features, "tfds:colors", path)
