from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.errors import NotFound, OptionInvalid
from fxtrace.service.keys import KeyFile, new_key, read_keys, revoke_key
from tests.cli.conftest import Run, run  # noqa: F401


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "keys.json"


def test_a_key_is_found_until_it_is_revoked(file: Path) -> None:
    kept, text = new_key(file, "Åsa", "write")
    other, _ = new_key(file, "Bo", "read")
    keys = KeyFile(file)
    assert keys.find(text) == kept
    assert read_keys(file) == [kept, other]
    assert revoke_key(file, kept.id) == kept
    assert keys.find(text) is None
    assert read_keys(file) == [other]
    with pytest.raises(NotFound, match=f"no key named '{kept.id}'"):
        revoke_key(file, kept.id)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[KeyFile, str]:
    file = tmp_path_factory.mktemp("one") / "keys.json"
    _, key = new_key(file, "someone", "read")
    return KeyFile(file), key


@given(st.text(), st.data())
def test_nothing_else_is_a_key(one: tuple[KeyFile, str], text: str, data: st.DataObject) -> None:
    keys, key = one
    assert keys.find(text) is None
    at = data.draw(st.integers(0, len(key) - 1))
    changed = key[:at] + data.draw(st.characters(exclude_characters=key[at])) + key[at + 1 :]
    assert keys.find(changed) is None
    assert keys.find(key + "=") is keys.find(key[:-1]) is None
    assert keys.find(key) is not None


def test_changes_at_the_same_time_are_all_kept(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: new_key(file, str(number), "read")[0], range(24)))
    assert {key.id for key in read_keys(file)} == {key.id for key in made}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "\x1b[31m"])
def test_a_key_has_a_name(file: Path, name: str) -> None:
    with pytest.raises(OptionInvalid, match="expected a word on whose key it is"):
        new_key(file, name, "read")


def test_the_command(run: Run, file: Path) -> None:  # noqa: F811
    made = run("keys", "new", "ci", "--scope", "read", "--keys", file)
    assert made.exit_code == 0
    kept = KeyFile(file).find(made.stdout.strip())
    assert kept is not None
    listed = run("keys", "ls", "--keys", file).stdout
    assert listed.splitlines()[0] == f"Keys in {file}"
    (row,) = (line.split() for line in listed.splitlines() if line.startswith(kept.id))
    assert (row[1], row[-1]) == ("read", "ci")
    assert f'"id": "{kept.id}"' in run("keys", "ls", "--keys", file, "--json").stdout
    assert run("keys", "revoke", "nobody", "--keys", file).exit_code == 1
    assert run("keys", "revoke", kept.id, "--keys", file).stdout == f"revoked {kept.id}, the key of ci\n"
    assert run("keys", "ls", "--keys", file).stdout == f"there are no keys in {file}\n"
    assert run("keys", "new", "ci", "--scope", "all", "--keys", file).exit_code == 2
    refused = run("keys", "ls", "--keys", file.with_name("none"))
    assert "cannot read the keys in" in refused.stderr
