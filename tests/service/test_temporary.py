from __future__ import annotations

from pathlib import Path

import pytest

from fxtrace.service.temporary import TemporaryFolder, remove_abandoned
from tests.service.processes import server_process, until


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_only_what_nobody_holds_is_removed(temporary: Path) -> None:
    held, gone = TemporaryFolder(), TemporaryFolder()
    (temporary / "notes").mkdir()
    (gone.path / "file").write_text("x")
    elsewhere = temporary / "notes" / "file"
    elsewhere.write_text("mine")
    (gone.path.parent / f"{gone.path.name}x").symlink_to(temporary / "notes")
    remove_abandoned()
    assert (gone.path / "file").exists()
    left = gone.path
    gone.remove()
    left.mkdir()  # as a server leaves it that is killed
    (left / "file").write_text("x")
    remove_abandoned()
    assert not left.exists()
    assert held.path.is_dir()
    assert elsewhere.exists()
    held.remove()
    assert not held.path.exists()


def test_the_folders_of_a_killed_server_go_with_the_next(temporary: Path) -> None:
    def folders() -> set[Path]:
        return set(temporary.glob("fxtrace-*"))

    with server_process(temporary / "store", workers=1, render_workers=1) as (process, _):
        until(folders)
        process.kill()
        process.wait()
    left = folders()
    assert left
    with server_process(temporary / "store", workers=1, render_workers=1):
        until(lambda: not left & folders())
