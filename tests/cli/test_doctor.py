from __future__ import annotations

import json
import re
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

import fxtrace
from fxtrace import doctor
from fxtrace.extras import EXTRAS
from fxtrace.ir.trace import TraceRequest
from fxtrace.service.engine import Engine
from fxtrace.service.keys import new_key
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
from tests.cli.conftest import Run
from tests.conftest import Served
from tests.service.certificates import write_authority, write_pair


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch and all modules are not imported once more in each of these tests, but in those that are about it."""
    monkeypatch.setattr(doctor, "_IMPORTS", "print('[\"2.x\", 0]'); print('[1, []]')")


def checks(run: Run, *args: object) -> tuple[dict[str, dict[str, str]], int]:
    done = run("doctor", "--json", *args)
    return {check["name"]: check for check in json.loads(done.stdout)}, done.exit_code


def test_a_good_installation(run: Run, tmp_path: Path) -> None:
    with Engine.open(tmp_path / "store") as engine:
        engine.create_trace(TraceRequest("reference"))
    found, code = checks(run)
    assert code == 0
    assert {check["state"] for check in found.values()} == {"ok"}
    assert found["store"]["message"] == f"{tmp_path / 'store'}, writable, traces: 1"
    assert found["traces"]["message"] == "as they were written: the latest 1 of 1"
    said = run("doctor").stdout
    assert re.search(r"✓ disk +\d+\.\d GiB free", said)
    assert "✗" not in said


def test_all_is_imported_in_a_process(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.undo()
    found, code = checks(run)
    assert (code, found["torch"]["state"], found["modules"]["state"]) == (0, "ok", "ok")
    assert int(re.findall(r"all (\d+) of", found["modules"]["message"])[0]) > 100


@pytest.mark.parametrize(
    ("code", "broken", "advice"),
    [
        ("import os; os.abort()", {"torch", "modules"}, "pip install --force-reinstall torch"),
        ("print('[\"2.x\", 0]', flush=True); import os; os.abort()", {"modules"}, doctor._REINSTALL),
        ("print('[\"2.x\", 0]'); print('[9, [\"fxtrace.x: no module y\"]]')", {"modules"}, doctor._REINSTALL),
    ],
    ids=["PyTorch aborts", "a module aborts", "a module cannot be imported"],
)
def test_what_cannot_be_imported_is_broken(
    monkeypatch: pytest.MonkeyPatch, run: Run, code: str, broken: set[str], advice: str
) -> None:
    monkeypatch.setattr(doctor, "_IMPORTS", code)
    found, exit_code = checks(run)
    assert exit_code == 1
    assert {name for name, check in found.items() if check["state"] == "broken"} == broken
    assert {found[name]["advice"] for name in broken} == {advice}


def test_what_is_broken_is_told_with_what_to_do(run: Run, tmp_path: Path) -> None:
    with Engine.open(tmp_path / "store") as engine:
        trace = engine.create_trace(TraceRequest("reference"))
    (file,) = (tmp_path / "store" / "tensors").glob(f"{trace.id}*")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    found, code = checks(run)
    assert (code, found["traces"]["state"]) == (1, "broken")
    assert trace.id in found["traces"]["message"]
    (tmp_path / "file").write_text("in the way")
    found, code = checks(run, "--store", tmp_path / "file" / "store")
    assert (code, found["store"]["state"]) == (1, "broken")


def test_what_is_not_installed_is_no_fault(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as Python marks a module that cannot be imported
    found, code = checks(run)
    assert (code, found["hf"]["state"], found["hf"]["advice"]) == (0, "absent", "pip install 'fxtrace[hf]'")


def test_every_extra_is_looked_at() -> None:
    project = tomllib.loads((Path(fxtrace.__file__).parents[1] / "pyproject.toml").read_text())
    extras = set(project["project"]["optional-dependencies"])
    assert {*EXTRAS} == extras - {"all", "dev", "coverage"}


def test_a_server_with_tls_and_keys(run: Run, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=40))
    files = write_pair(tmp_path, certificate)
    ca = write_authority(tmp_path, authority)
    _, key = new_key(tmp_path / "keys", "someone", "read")
    settings = Settings(tls_certificate=files[0], tls_key=files[1], keys=tmp_path / "keys")
    monkeypatch.setenv("FXTRACE_TOKEN", key)
    with serving(served.engine, "localhost:0", settings=settings) as address:
        found, code = checks(run, "--server", address, "--ca", ca)
        assert code == 0
        assert found["server"]["message"] == f"answers at {address}, encrypted"
        assert found["certificate"]["message"].endswith("UTC, 39 days")
        assert (found["health"]["message"], found["version"]["message"]) == ("serving", fxtrace.__version__)
        assert found["key"]["message"] == f"{key.split('_')[1]}, may read"
        assert run("traces", "--server", address, "--ca", ca, "--json").exit_code == 0
        refused = run("delete", served.reference.id, "--server", address, "--ca", ca, "--json")
        assert json.loads(refused.stderr)["reason"] == "PERMISSION_DENIED"
        assert json.loads(refused.stderr)["request_id"]
        monkeypatch.setenv("FXTRACE_TOKEN", key[:-1] + "-")
        found, code = checks(run, "--server", address, "--ca", ca)
        assert (code, found["key"]["state"]) == (1, "broken")
        write_pair(tmp_path, authority.issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=2)))
        found, code = checks(run, "--server", address, "--ca", ca)
        assert (code, found["certificate"]["advice"]) == (1, "renew it")
        found, code = checks(run, "--server", address, "--tls")
        assert code == 1
        assert "the server's certificate is not accepted" in found["server"]["message"]


def test_a_server_of_another_version(run: Run, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "__version__", "9.9.9")
    found, code = checks(run, "--server", served.address)
    assert (code, found["version"]["message"]) == (1, f"the server runs {fxtrace.__version__}, this is 9.9.9")
    assert found["key"]["message"] == "none wanted; may read and write"


def test_no_server(run: Run) -> None:
    found, code = checks(run, "--server", "127.0.0.1:1")
    assert (code, found["server"]["state"]) == (1, "broken")
