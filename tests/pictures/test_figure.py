import hashlib
import os
import pathlib
import re
import subprocess
import sys
import threading
import warnings

import matplotlib
import numpy as np
import pytest

import pictures
from pictures.figure import new_figure, percent, printable, styled

ROOT = pathlib.Path(__file__).parents[2]


def small():
    """A picture with text, lines and images in it."""
    return pictures.confusion_matrix(np.array([[3, 1], [0, 2]]), ["cat", "dog"])


@pytest.fixture(scope="module")
def plain():
    """The content of its file."""
    return pictures.to_png(small())


def test_equal_pictures_are_equal_bytes(plain):
    assert plain.startswith(b"\x89PNG")
    assert pictures.to_png(small()) == plain
    other = pictures.confusion_matrix(np.array([[3, 1], [1, 2]]), ["cat", "dog"])
    assert pictures.to_png(other) != plain


def test_a_png_has_the_size_asked_for_and_no_date_or_program(tmp_path):
    @styled
    def draw():
        return new_figure(2, 1)

    for dpi, size in ((100, (200, 100)), (50, (100, 50))):
        content = pictures.to_png(draw(), dpi=dpi)
        assert tuple(np.frombuffer(content[16:24], ">u4")) == size
    assert b"tEXt" not in content
    pictures.save(draw(), tmp_path / "a.png", dpi=50)
    assert (tmp_path / "a.png").read_bytes() == content


def test_a_users_settings_change_no_picture_and_stay(plain):
    theirs = {
        "font.size": 40,
        "text.usetex": True,
        "savefig.bbox": "tight",
        "savefig.facecolor": "red",
        "lines.antialiased": False,
    }
    with matplotlib.rc_context(theirs):
        assert pictures.to_png(small()) == plain
        assert {key: matplotlib.rcParams[key] for key in theirs} == theirs


def test_threads_may_draw_at_the_same_time(plain):
    before, drawn = dict(matplotlib.rcParams), []
    threads = [
        threading.Thread(target=lambda: drawn.append(pictures.to_png(small()))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [plain] * 4
    assert dict(matplotlib.rcParams) == before


def test_neither_home_nor_backend_nor_matplotlibrc_is_needed(tmp_path, plain):
    (tmp_path / "matplotlibrc").write_text("font.size: banana\naxes.facecolor: red\nnonsense\n")
    code = (
        "import hashlib, sys, pictures\n"
        "from tests.pictures.test_figure import small\n"
        "print(hashlib.sha256(pictures.to_png(small())).hexdigest())\n"
        "print('matplotlib.pyplot' in sys.modules, 'tensorflow' in sys.modules)\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": "/dev/null",
        "MPLBACKEND": "no_such_backend",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    digest = hashlib.sha256(plain).hexdigest()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [digest, "False False"]


def test_pyplot_is_nowhere_in_the_room():
    for path in (ROOT / "pictures").glob("*.py"):
        assert not re.search(
            r"^\s*(import|from) .*pyplot|pyplot\.", path.read_text(), re.MULTILINE
        ), path


def test_only_one_file_imports_matplotlib():
    importing = {
        path.name
        for path in (ROOT / "pictures").glob("*.py")
        if re.search(r"^\s*(import|from) matplotlib", path.read_text(), re.MULTILINE)
    }
    assert importing == {"figure.py"}


def test_save_replaces_a_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    pictures.save(small(), str(path))
    assert path.read_bytes() == pictures.to_png(small(), dpi=150)
    assert os.listdir(tmp_path) == ["picture.png"]


def test_a_failed_save_keeps_the_old_file_and_raises_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    full = OSError(28, "No space left on device")

    def write_half(self, content):
        with self.open("wb") as file:
            file.write(content[:100])
        raise full

    monkeypatch.setattr(pathlib.Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left") as raised:
        pictures.save(small(), path)
    assert raised.value is full
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_saving_to_a_missing_directory_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        pictures.save(small(), tmp_path / "missing" / "picture.png")


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("cat", None, "cat"),
        ("a\tb\n c\x00", None, "a b c\N{WHITE SQUARE}"),
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghijk", 10, "abcde…hijk"),
        ("abcdefghijk", 5, "ab…jk"),
        ("México €", None, "México €"),
        ("n\u0303", None, "\u00f1"),
        ("\u732b", None, "\N{WHITE SQUARE}"),
    ],
)
def test_printable(text, width, expected):
    assert printable(text, width) == expected


def test_names_with_markup_or_missing_glyphs_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = pictures.confusion_matrix(np.eye(2, dtype=int), ["$x^2$ \\frac", "猫\n$"])
        pictures.to_png(figure, dpi=40)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["$x^2$ \\frac", "\N{WHITE SQUARE} $"]
    assert not any(label.get_parse_math() for label in figure.axes[0].get_yticklabels())


def test_percent():
    assert [percent(x) for x in (0.5, 1.0, 0.125, 0.07, 0.9985)] == [
        "50%",
        "100%",
        "12.5%",
        "7%",
        "99.85%",
    ]
