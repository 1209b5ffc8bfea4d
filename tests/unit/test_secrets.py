"""Secrets of the environment, whatever their form, stay out of specs, messages and command lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import launcher, write_job
from specs import MINIMAL, problems

from launcher import environ
from launcher.errors import UsageError
from launcher.job.redact import has_secret, redact
from launcher.run import Run

CANARY = "plain words 7f3a/9c1e"  # nothing that looks like a token


@pytest.fixture(
    params=[
        *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "my_secret"),
        *("PGPASSWORD", "MYSITE_PAT", "SMTP_PASS", "MYSQL_PWD"),
    ]
)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(request.param, CANARY)
    return str(request.param)


def test_what_the_environment_calls_a_secret_is_one(name: str) -> None:
    assert has_secret(f"{CANARY} at the begin") and has_secret(f"x{CANARY}")
    assert redact(f"a {CANARY} and {CANARY}!") == "a [secret] and [secret]!"


def test_other_variables_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "PASSWORD_STORE_DIR", "KEYBOARD")
    for other in (*words, "PWD", "OLDPWD", "MYPATH", "SITE_PATH", "COMPASS"):
        monkeypatch.setenv(other, CANARY)
    monkeypatch.setenv("SINGULARITY_PWD", str(Path.cwd()))
    assert str(Path.cwd()) not in environ.secrets()
    monkeypatch.setenv("CI_TOKEN", "short")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    assert CANARY not in environ.secrets()
    assert redact(f"{CANARY} is short") == f"{CANARY} is short"


@pytest.mark.parametrize(
    "more", ["# {}\n", "slurm: {{comment: '{}'}}\n", "slurm: {{setup: ['echo {}']}}\n"]
)
def test_a_spec_that_holds_one_is_refused(name: str, more: str, tmp_path: Path) -> None:
    said = problems(tmp_path, MINIMAL + more.format(CANARY))
    assert any("job.yaml:4:" in line and "looks like a secret" in line for line in said)
    assert CANARY not in "".join(said)


@pytest.mark.parametrize(
    "more",
    [
        'slurm: {{comment: "{}\\x{:02x}{}"}}\n',
        'slurm: {{setup: ["{}\\x{:02x}{}"]}}\n',
        'generation: {{"{}\\x{:02x}{}": 1}}\n',
    ],
)
def test_an_escape_hides_none(name: str, more: str, tmp_path: Path) -> None:
    hidden = more.format(CANARY[:3], ord(CANARY[3]), CANARY[4:])
    said = problems(tmp_path, MINIMAL + hidden)
    assert any("job.yaml:4:" in line and "looks like a secret" in line for line in said)
    assert CANARY not in "".join(said)


def test_none_is_in_the_run_directorys_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="looks like a secret") as caught:
        Run.create(tmp_path / CANARY)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "curl -H 'Authorization: Bearer abcdef123456'",
        "curl -H 'authorization: bearer abcdef123456'",
        "export MY_PASSWORD=hunter22",
    ],
)
def test_headers_and_assignments(line: str) -> None:
    assert has_secret(line)
    assert "[secret]" in redact(line)
    assert not has_secret('curl -H "Authorization: Bearer $TOKEN"')


def test_nothing_of_it_is_told_by_the_command_line(tmp_path: Path) -> None:
    """Also not where a mistake is about the value itself."""
    env = {"HF_TOKEN": CANARY}
    spec = write_job(tmp_path, 2, model={"path": f"org/{CANARY}"}, slurm={"partition": CANARY})
    for command in ("plan", "run", "submit"):
        done = launcher(command, spec, env=env, code=2)
        assert "looks like a secret" in done.stderr
        assert CANARY not in done.stdout + done.stderr


def test_errors_do_not_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;pwned\x07\x1b[2J\u202e"
    spec = write_job(tmp_path, 2, model={"path": f"./{evil}"})
    done = launcher("plan", spec, code=3)
    assert "there is no directory" in done.stderr and "pwned" in done.stderr
    spec = write_job(tmp_path, 2, slurm={"setup": [f"echo {evil}"]})
    script = launcher("plan", spec)
    assert "pwned" in script.stdout
    for said in (done.stderr, script.stdout, script.stderr):
        assert not {"\x1b", "\x07", "\u202e"} & set(said)
