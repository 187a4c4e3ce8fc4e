"""The kinds of store: index in SQLite or PostgreSQL, files in a folder or an object store."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fxtrace.store import Store

KINDS = ("folder", "postgresql+folder", "sqlite+s3", "postgresql+s3")

NewPlace = Callable[[str], str]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server of the tests' own, on a socket in a folder."""
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    programs = [shutil.which("postgres"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")))]
    if not any(programs):
        pytest.skip("PostgreSQL is not installed")
    binary = Path(next(filter(None, programs))).resolve().parent
    # It refuses to run as root.
    user = next((name for name in ("postgres", "nobody") if _has_user(name)), None) if os.geteuid() == 0 else None
    folder = tempfile.mkdtemp(prefix="fxtrace-")
    try:
        if user:
            shutil.chown(folder, user)
        data = f"{folder}/data"
        initdb = [str(binary / "initdb"), "-D", data, "-U", "fxtrace", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(initdb, user=user, check=True, capture_output=True, cwd=folder)
        settings = ("fsync=off", "listen_addresses=", f"unix_socket_directories={folder}")
        command = [str(binary / "postgres"), "-D", data, *(f"--{setting}" for setting in settings)]
        with (
            Path(folder, "log").open("wb") as log,
            subprocess.Popen(command, user=user, stderr=log, stdout=log, cwd=folder) as server,
        ):
            try:
                while "ready" not in _text(Path(data, "postmaster.pid")):
                    assert server.poll() is None, Path(folder, "log").read_text()
                    time.sleep(0.02)
                yield f"postgresql+psycopg://fxtrace@/postgres?host={folder}"
            finally:
                server.terminate()
    finally:
        shutil.rmtree(folder)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _has_user(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The URL of a bucket of moto's server, on loopback; the variables that lead to it are set."""
    pytest.importorskip("obstore", reason="the extra 's3' is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    pytest.importorskip("flask_cors", reason="flask-cors, which moto's server needs, is not installed")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
            }.items():
                environment.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket="traces")
            yield "s3://traces"
    finally:
        server.stop()


@pytest.fixture(scope="session")
def new_place(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> NewPlace:
    """A new, empty store's place, of one of the kinds."""

    def make(kind: str) -> str:
        folder = tmp_path_factory.mktemp("store")
        if kind == "folder":
            return str(folder)
        index = f"sqlite:///{folder}/index.sqlite3"
        files = str(folder)
        if kind.startswith("postgresql"):
            import psycopg

            url = request.getfixturevalue("postgresql")
            schema = f"s{uuid.uuid4().hex}"
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                connection.execute(f"CREATE SCHEMA {schema}")
            index = f"{url}&options=-csearch_path%3D{schema}"
        if kind.endswith("s3"):
            files = f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
        return f"{index}#{files}"

    return make


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, new_place: NewPlace) -> str:
    """A new, empty store's place, of every kind in turn."""
    return new_place(request.param)


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    """A new, empty store of every kind in turn."""
    store = Store(place)
    yield store
    store.close()


@pytest.fixture
def folder_store(tmp_path: Path) -> Iterator[Store]:
    """A new, empty store in a folder."""
    store = Store(tmp_path)
    yield store
    store.close()
