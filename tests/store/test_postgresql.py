"""What is PostgreSQL's own: connections that are lost or refused, and what it says of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from fxtrace.client import Client
from fxtrace.errors import FxtraceError, StoreDamaged, TraceNotFound, Unmet
from fxtrace.service.engine import Engine
from fxtrace.service.server import serving
from fxtrace.store import Store
from fxtrace.store.faults import DiskFull
from fxtrace.store.place import parse_place
from fxtrace.store.refusals import reported_of_index
from tests.store.conftest import NewPlace, PostgreSQL
from tests.store.traces import check_whole, put, trace_id

psycopg = pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")


@pytest.fixture
def place(new_place: NewPlace) -> str:
    return new_place("postgresql+folder")


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    store = Store(place)
    yield store
    store.close()


def at_loopback(server: PostgreSQL) -> str:
    """The URL of a new, empty index."""
    return f"{server.loopback}?options=-csearch_path%3D{server.new_schema()}"


def test_a_server_that_was_started_again(store: Store, postgresql: PostgreSQL) -> None:
    put(store, 1)
    postgresql.stop()
    postgresql.start()
    check_whole(store, 1)
    put(store, 2)
    check_whole(store, 2)


def test_callers_are_told_while_the_server_is_away(postgresql: PostgreSQL, tmp_path: Path) -> None:
    with (
        Engine.open(f"{at_loopback(postgresql)}#{tmp_path}") as engine,
        serving(engine) as address,
        Client(address) as client,
    ):
        put(engine.store, 1)
        name = trace_id(1)
        client.get_graph(name)
        postgresql.stop()
        try:
            for call in (
                lambda: client.get_trace(name),
                lambda: next(client.list_traces()),
                lambda: client.list_snapshots(name),
                lambda: client.read_tensor(name, "x"),
                lambda: client.render_graph(name, "dot"),
                lambda: client.delete_trace(name),
            ):
                with pytest.raises(Unmet, match="the store cannot be used: ") as told:
                    call()
                for secret in (str(postgresql.folder), "127.0.0.1", "host="):
                    assert secret not in f"{told.value.message} {told.value.metadata}"
        finally:
            postgresql.start()
        assert client.read_tensor(name, "x").shape == (2, 3)
        client.delete_trace(name)
        with pytest.raises(TraceNotFound):
            client.get_trace(name)


def test_a_connection_that_is_lost_in_a_transaction(store: Store, postgresql: PostgreSQL) -> None:
    put(store, 1)

    def lose() -> None:
        with store._index.locked() as connection, psycopg.connect(postgresql.url.replace("+psycopg", "")) as other:
            store._index.mark_deleted(connection, trace_id(1))
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            store._index.sizes(connection)

    with pytest.raises(Unmet, match="cannot be used: terminating connection"):
        lose()
    check_whole(store, 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda url: url.replace(quote_plus(PostgreSQL.PASSWORD), "a%2Fwrong%40word"),
            "password authentication failed",
        ),
        (lambda url: url.replace("/postgres", "/nowhere"), 'database "nowhere" does not exist'),
        (lambda url: url.replace("127.0.0.1", "nobody.invalid"), "."),
        (lambda url: f"{url}?nonsense=1", "nonsense"),
        (lambda url: f"{url.replace(quote_plus(PostgreSQL.PASSWORD), '')}?password=a-wrong-word", "password"),
        (lambda url: f"{url}?options=-cdefault_transaction_read_only%3Don", "read-only transaction"),
    ],
)
def test_what_cannot_be_opened_is_told_without_the_password(
    postgresql: PostgreSQL, tmp_path: Path, change: object, problem: str
) -> None:
    assert callable(change)
    with pytest.raises(
        Unmet, match=rf"^the store cannot be used: .*{problem}.*\(opening postgresql\+psycopg://fxtrace"
    ) as told:
        Store(f"{change(postgresql.loopback)}#{tmp_path}")
    for text in (told.value.message, str(told.value.metadata)):
        assert not any(word in text for word in (PostgreSQL.PASSWORD, quote_plus(PostgreSQL.PASSWORD), "wrong"))
        assert "\n" not in text


def test_a_password_that_is_right(postgresql: PostgreSQL, tmp_path: Path) -> None:
    with closing(Store(f"{at_loopback(postgresql)}#{tmp_path}")) as store:
        put(store, 1)
        check_whole(store, 1)


def test_who_waited_for_the_lock_sees_what_was_written(store: Store) -> None:
    """Whatever isolation the database's operator prefers."""
    place = store.place.replace("options=", "options=-cdefault_transaction_isolation%3Dserializable%20")
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with closing(Store(place)) as mine:
                for number in range(8):
                    put(mine, number)
                    mine.pin(trace_id(number))
        except FxtraceError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.traces(100)) == len(store._blobs.files()) == 8


def test_more_callers_than_connections(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 1)
    pool = store._index._engine.pool
    monkeypatch.setattr(pool, "_timeout", 0.01)
    with ExitStack() as held:
        for _ in range(15):
            held.enter_context(store._index._engine.connect())
        with pytest.raises(Unmet, match="too much waits"):
            store.trace(trace_id(1))
    check_whole(store, 1)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("SELECT 1/0", StoreDamaged),
        ("SELECT * FROM nowhere", StoreDamaged),
        ("SELECT * FROM pg_authid", Unmet),  # by a role that may not
        ("CREATE TABLE t (n int)", Unmet),  # where only reading is allowed
    ],
)
def test_what_is_damage_and_what_is_not(store: Store, statement: str, kind: type[FxtraceError]) -> None:
    with store._index._engine.connect() as connection:
        for each in ("CREATE ROLE guest", "SET ROLE guest", "SET TRANSACTION READ ONLY"):
            connection.exec_driver_sql(each)
        with pytest.raises(FxtraceError) as told, reported_of_index():
            connection.exec_driver_sql(statement)
    assert type(told.value) is kind
    assert "index.sqlite3" not in told.value.message


def test_a_full_disk_is_told_as_such() -> None:
    from sqlalchemy.exc import OperationalError

    with pytest.raises(DiskFull, match="No space left"), reported_of_index():
        raise OperationalError("INSERT", {}, psycopg.errors.DiskFull("could not extend file: No space left on device"))


def test_a_place_is_shown_without_a_password() -> None:
    shown = str(parse_place("postgresql://me:one@h/db?sslpassword=two&password=three&port=5#s3://bucket"))
    assert shown == "postgresql+psycopg://me:***@h/db?port=5#s3://bucket"
