from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from fxtrace.store.blobs import SUFFIX, Folder


@pytest.mark.parametrize("start", [0, 5, 4096, 300_000, 400_000])
@pytest.mark.parametrize("cached", [True, False])
def test_what_is_not_waited_for_is_the_file_s_beginning(tmp_path: Path, start: int, cached: bool) -> None:
    data = random.Random(0).randbytes(300_000)
    folder = Folder(tmp_path)
    folder.write("a", [memoryview(data)])
    source = folder.open("a")
    room = memoryview(bytearray(len(data)))
    if not cached and hasattr(os, "posix_fadvise"):
        with (tmp_path / f"a{SUFFIX}").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    at_hand = source.readinto(start, room, wait=False)
    assert room[:at_hand] == data[start : start + at_hand]
    assert source.readinto(start, room) == len(data[start:]) >= at_hand
    assert room[: len(data[start:])] == data[start:]
    source.close()
