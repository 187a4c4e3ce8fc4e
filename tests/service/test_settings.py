from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fxtrace.errors import OptionInvalid
from fxtrace.service.settings import PREFIX, Settings
from tests.cli.conftest import Run, run  # noqa: F401


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fxtrace.toml"


def test_flags_go_before_the_environment_and_that_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('workers = 5\nqueue_length = 6\nrender_memory = "1GiB"\nmodels = ["a.py", "b.py"]\n')
    monkeypatch.setenv("FXTRACE_QUEUE_LENGTH", "7")
    monkeypatch.setenv("FXTRACE_RENDER_WORKERS", "3")
    monkeypatch.setenv("FXTRACE_STOP_GRACE", "")  # as if it were not set
    settings = Settings.load(file, render_workers="4", port=None)
    assert (settings.workers, settings.queue_length, settings.render_workers) == (5, 7, 4)
    assert (settings.render_memory, settings.stop_grace, settings.port) == (1 << 30, 5, 50051)
    assert settings.models == ("a.py", "b.py")
    monkeypatch.setenv("FXTRACE_CONFIG", str(file))
    monkeypatch.setenv("FXTRACE_MODELS", "c.py,hf:bert")
    assert (Settings.load().workers, Settings.load().models) == (5, ("c.py", "hf:bert"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers = 0", r"fxtrace\.toml: workers: input should be greater than or equal to 1, got 0"),
        ("wokers = 1", r"fxtrace\.toml: no setting named 'wokers'; did you mean 'workers'\?"),
        ("workers = ", r"fxtrace\.toml is not TOML: "),
        ('batch_size = "3 parsecs"', "could not interpret byte unit"),
    ],
)
def test_a_bad_file_is_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(OptionInvalid, match=message):
        Settings.load(file)


def test_a_bad_value_says_where_it_stood(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionInvalid, match=r"cannot read .*fxtrace\.toml: No such file"):
        Settings.load(file)
    monkeypatch.setenv("FXTRACE_CAPTURE_SECONDS", "soon")
    with pytest.raises(OptionInvalid, match=r"FXTRACE_CAPTURE_SECONDS: input should be a valid number.*'soon'") as e:
        Settings.load()
    assert e.value.field == "capture_seconds"
    with pytest.raises(OptionInvalid, match="--capture-seconds: input should be greater than 0, got -1"):
        Settings.load(capture_seconds=-1)


def test_every_setting_is_described() -> None:
    assert all(field.description and field.description.endswith(".") for field in Settings.model_fields.values())


def test_the_command_has_a_flag_for_each(run: Run) -> None:  # noqa: F811
    said = " ".join(run("serve", "--help").stdout.replace("│", " ").split())
    for name, field in Settings.model_fields.items():
        flag = "--model" if name == "models" else f"--{name.replace('_', '-')}"
        assert f"{flag} " in said
        if name not in ("host", "port", "store", "models", "hf"):
            assert (field.description or "") in said
    assert "By default 64.0MiB." in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--workers", "none"), "--workers: input should be a valid integer"),
        (("--render-memory", "1"), "--render-memory: input should be greater than or equal to 1048576"),
        (("--config", "nowhere.toml"), "cannot read nowhere.toml"),
    ],
)
def test_the_command_refuses_bad_values(run: Run, args: tuple[str, ...], message: str) -> None:  # noqa: F811
    done = run("serve", *args)
    assert done.exit_code == 1
    assert message in done.stderr


def test_the_readme_s_example_is_one(file: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    example = text.split("```toml\n")[1].split("```")[0]
    file.write_text(example)
    settings = Settings.load(file)
    assert {name: getattr(settings, name) for name in ("workers", "queue_length")} == {
        name: tomllib.loads(example)[name] for name in ("workers", "queue_length")
    }
    assert f"`{PREFIX}QUEUE_LENGTH`" in text
