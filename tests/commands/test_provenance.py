"""The fingerprint of the code that a run was trained with."""

import pytest
import tensorflow as tf

from commands import provenance

CODE = '''"""A loss."""
# By hand.
def loss(targets, logits):
    """The squared error."""
    return (targets - logits) ** 2
'''


@pytest.fixture
def fingerprint(tmp_path, monkeypatch):
    """The fingerprint with a text in a file of a project."""

    def of(text, file="loops/mine.py"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() if path.exists() else None
        path.write_text(text)
        found = provenance.sources.__wrapped__()
        path.unlink() if before is None else path.write_text(before)
        return found

    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    monkeypatch.setattr(provenance, "_NOT_COUNTED", tmp_path / "loops" / "records")
    return of


def test_comments_docstrings_and_layout_do_not_count(fingerprint):
    same = "def loss(targets,\n         logits):\n\n    return (targets - logits)**2  # Two.\n"
    assert fingerprint(CODE) == fingerprint(same)
    assert len(fingerprint(CODE)) == 8


@pytest.mark.parametrize(
    ("old", "new"),
    [("** 2", "** 4"), ("targets - logits", "logits - targets"), ("return", "'text'; return")],
)
def test_any_statement_counts(fingerprint, old, new):
    assert fingerprint(CODE) != fingerprint(CODE.replace(old, new))


def test_the_place_of_a_file_counts(fingerprint, tmp_path):
    empty = provenance.sources.__wrapped__()
    found = [
        fingerprint(CODE, file)
        for file in (
            *(f"{folder}/mine.py" for folder in ("nets", "data", "loops", "nets/a")),
            "commands/session.py",
        )
    ]
    assert len({*found, empty}) == 6
    for other in ("commands/mine.py", "loops/records/mine.py", "loops/mine.txt"):
        assert fingerprint(CODE, other) == empty


def test_hidden_files_and_directories_do_not_count(fingerprint, tmp_path):
    """Such as the locks of an editor, which are dangling links, and copies of notebooks."""
    before = fingerprint(CODE)
    (tmp_path / "loops" / ".#mine.py").symlink_to("nowhere")
    (tmp_path / "loops" / "link.py").symlink_to("nowhere")
    (tmp_path / "nets" / ".checkpoints").mkdir(parents=True)
    (tmp_path / "nets" / ".checkpoints" / "mine.py").write_text(CODE)
    (tmp_path / "nets" / "directory.py").mkdir()
    assert fingerprint(CODE) == before
    assert fingerprint("\ufeff" + CODE) == before


def test_a_file_that_does_not_parse_counts_as_text(fingerprint):
    assert fingerprint("def (") != fingerprint("def ((")


@pytest.mark.parametrize(
    ("said", "suffix"),
    [(None, ""), ("1", ""), ("0", " without oneDNN"), ("False", " without oneDNN")],
)
def test_tensorflow_without_onednn_is_another_version(monkeypatch, said, suffix):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    if said:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", said)
    assert provenance.versions()["tensorflow"] == tf.__version__ + suffix


def test_that_of_this_project():
    assert provenance.sources() == provenance.sources.__wrapped__()
    assert int(provenance.sources(), 16) >= 0
