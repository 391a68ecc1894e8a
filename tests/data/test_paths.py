import io
import os

import pytest

from data.paths import find_images
from data.source import DataError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        open(name, "wb").close()


def find(*arguments, lines=None):
    found = find_images(arguments, None if lines is None else io.BytesIO(lines))
    return [f"! {x}" if isinstance(x, DataError) else x for x in found]


def test_files_are_taken_as_they_are_named():
    touch("b.jpg", "notes.txt", "-")
    arguments = ("b.jpg", "notes.txt", "missing.jpg", "b.jpg", "./-")
    assert find(*arguments, lines=b"") == list(arguments)


def test_a_directory_is_searched_in_the_order_of_names():
    touch("d/b.PNG", "d/a/2.jpeg", "d/a/10.jpg", "d/c/deep/er/x.png", "d/B.jpg", "d/a.jpg")
    touch("d/text.txt", "d/.hidden.jpg", "d/.cache/1.jpg", "d/jpg", "d/photo.jpg.txt")
    os.mkdir("d/empty.jpg")
    names = ["B.jpg", "a/10.jpg", "a/2.jpeg", "a.jpg", "b.PNG", "c/deep/er/x.png"]
    assert find("d") == [f"d/{name}" for name in names]
    assert find("d/") == find("d")
    assert find(".") == [f"./d/{name}" for name in names]


def test_links_are_followed_once():
    touch("d/1.jpg", "other/2.jpg")
    os.symlink("..", "d/loop")
    os.symlink("../other", "d/other")
    os.symlink("missing", "d/broken.jpg")
    assert find("d") == ["d/1.jpg", "d/broken.jpg", "d/loop/other/2.jpg"]


def test_a_directory_without_images_or_access_is_an_error(monkeypatch):
    touch("d/a.txt", "e/1.jpg", "e/secret/2.jpg")
    assert find("d", "e") == [
        "! d has no images (.jpg, .jpeg, .png)",
        *("e/1.jpg", "e/secret/2.jpg"),
    ]
    listdir = os.listdir

    def refuse(path):
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)  # The superuser may read everything.
    assert find("e") == ["e/1.jpg", "! e/secret cannot be read: Permission denied"]


def test_patterns():
    touch("d/a.webp", "d/b.webp", "d/sub/c.webp", "d/sub/d.txt", "d/e [1].webp", "e.webp")
    os.mkdir("d/x.webp")
    assert find("d/*.webp") == ["d/a.webp", "d/b.webp", "d/e [1].webp"]
    assert find("**/*.webp") == [*find("d/*.webp"), "d/sub/c.webp", "e.webp"]
    assert find("**/**/[ab]*") == ["d/a.webp", "d/b.webp"]
    assert find("d/sub/*") == ["d/sub/c.webp", "d/sub/d.txt"]
    assert find("d/?.png", "d/*/") == ["! d/?.png matches no file", "! d/*/ matches no file"]
    # The name of a file that is there is no pattern.
    assert find("d/e [1].webp") == ["d/e [1].webp"]


def test_paths_on_standard_input():
    touch("d/1.jpg", "d/2.jpg", b"d/\xff 3.jpg", "e.jpg")
    lines = b"e.jpg\n\nd\n*.jpg\nd/\xff 3.jpg"
    third = os.fsdecode(b"d/\xff 3.jpg")
    assert find("-", "e.jpg", lines=lines) == [
        *("e.jpg", "d/1.jpg", "d/2.jpg", third, "*.jpg", third, "e.jpg"),
    ]
    assert find("-", lines=b"\n") == ["! standard input has no paths; write one per line"]


def test_nothing_is_listed_before_it_is_reached():
    touch("d/1.jpg")
    found = find_images(["d", "e"])
    assert next(found) == "d/1.jpg"
    touch("e/2.jpg")
    assert list(found) == ["e/2.jpg"]
