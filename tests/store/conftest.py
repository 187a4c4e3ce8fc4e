"""The kinds of store: index in SQLite or PostgreSQL, files in a folder or an object store."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from fxtrace.store import Store

KINDS = ("folder", "postgresql+folder", "sqlite+s3", "postgresql+s3")

NewPlace = Callable[[str], str]


class PostgreSQL:
    """A PostgreSQL server of the tests' own: on a socket in a folder, and for those with a password on a loopback port.

    Attributes:
        url: of a database, over the socket.
        loopback: the same, with the password.
        folder: of its socket and its files.
    """

    PASSWORD = "the/pass@word"

    def __init__(self, folder: Path, binary: Path, user: str | None) -> None:
        self.folder, self._binary, self._user = folder, binary, user
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"postgresql+psycopg://fxtrace@/postgres?host={folder}&port={self._port}"
        password = quote_plus(self.PASSWORD)
        self.loopback = f"postgresql+psycopg://fxtrace:{password}@127.0.0.1:{self._port}/postgres"
        word = folder / "password"
        word.write_text(self.PASSWORD)
        word.chmod(0o644)
        who = ("-U", "fxtrace", "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={word}")
        self._run("initdb", "--no-sync", "-E", "UTF8", *who)

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        settings = f"-F -c listen_addresses=127.0.0.1 -p {self._port} -k {self.folder}"
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", settings)

    def stop(self) -> None:
        """Stops it, whoever is connected."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def new_schema(self) -> str:
        """The name of a new, empty schema."""
        import psycopg

        schema = f"s{uuid.uuid4().hex}"
        with psycopg.connect(self.url.replace("+psycopg", "")) as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return schema

    def _run(self, program: str, *args: str) -> None:
        command = [str(self._binary / program), "-D", str(self.folder / "data"), *args]
        subprocess.run(command, user=self._user, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server of the tests' own; who stops it starts it again."""
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    programs = [shutil.which("postgres"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")))]
    if not any(programs):
        pytest.skip("PostgreSQL is not installed")
    binary = Path(next(filter(None, programs))).resolve().parent
    # It refuses to run as root.
    user = next((name for name in ("postgres", "nobody") if _has_user(name)), None) if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="fxtrace-"))  # pytest's own is too deep for a socket's name
    try:
        if user:
            shutil.chown(folder, user)
        server = PostgreSQL(folder, binary, user)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)


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
            server: PostgreSQL = request.getfixturevalue("postgresql")
            index = f"{server.url}&options=-csearch_path%3D{server.new_schema()}"
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
