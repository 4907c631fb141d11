"""The command line: versions, completion, manual pages, exit codes, standard streams."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from harness import results
from harness.broker import DEAD, RESULTS, Broker, Message
from harness.command import celeriac, fail, succeed
from harness.daemon import DOCUMENTS, REPOSITORY, binary
from harness.database import Databases
from harness.pipeline import Pipeline
from harness.probe import Probe
from harness.processes import wait_until
from harness.project import clean_environment
from harness.services import RabbitMQ

COMMANDS = ["run", "migrate", "dead", "capture", "replay", "completion", "man"]

#: Nothing listens there.
NOWHERE = "amqp://guest:guest@127.0.0.1:1//"


# Version --------------------------------------------------------------------------------------


def test_the_version_names_the_commit() -> None:
    said = succeed("--version")
    assert said == succeed("-V")
    version, commit = re.fullmatch(r"celeriac (\d+\.\d+\.\d+)(?: \((.+)\))?\n", said).groups()
    manifest = (REPOSITORY / "Cargo.toml").read_text()
    assert f'version = "{version}"' in manifest
    if commit is None:
        pytest.skip("it was built without a repository")
    assert re.fullmatch(r"[0-9a-f]{7,40} \d{4}-\d\d-\d\d", commit) or os.environ.get(
        "CELERIAC_COMMIT"
    )


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_the_log_and_the_metrics_name_the_commit(own_pipeline: Pipeline) -> None:
    commit = (re.findall(r"\((.+)\)", succeed("--version")) or [""])[0]
    daemon = own_pipeline.daemon
    probe = Probe()
    daemon.command += probe.options
    daemon.start_consuming()
    assert f'"commit":"{commit}"' in daemon.output()
    assert f'commit="{commit}"' in probe.ask("/metrics")[2].decode()


# Shells ---------------------------------------------------------------------------------------


def complete(*words: str) -> list[str]:
    """What bash completes for the last word, using the script as a shell would."""
    script = """
        source <("$1" completion bash)
        shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        function_of() { complete -p celeriac | sed 's/.*-F \\([^ ]*\\).*/\\1/'; }
        "$(function_of)" celeriac "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", binary(), "celeriac", *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


def test_bash_completes_commands_and_their_settings() -> None:
    assert set(COMMANDS) <= set(complete(""))
    assert complete("mig") == ["migrate"]
    assert set(complete("dead", "")) >= {"list", "show", "replay", "purge"}
    assert complete("run", "--max-r") == ["--max-rows"]
    assert complete("dead", "list", "--dead") == ["--dead-queue"]
    assert set(complete("completion", "")) >= {"bash", "zsh", "fish"}
    # Options that are hidden in the help are not completed, but they work.
    assert complete("migrate", "--max-r") == []
    assert complete("capture", "--lanes") == []


@pytest.mark.parametrize(
    ("shell", "word"),
    [
        ("bash", "complete -F _celeriac"),
        ("zsh", "#compdef celeriac"),
        ("fish", "complete -c celeriac"),
        ("elvish", "edit:completion:arg-completer[celeriac]"),
        ("powershell", "Register-ArgumentCompleter"),
    ],
)
def test_every_shell_has_a_script(shell: str, word: str) -> None:
    script = succeed("completion", shell)
    assert word in script and "max-rows" in script
    if shell in ("bash", "zsh", "fish") and (program := shutil.which(shell)):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


# Manual pages ---------------------------------------------------------------------------------


def test_there_is_a_manual_page_for_each_command(tmp_path: Path) -> None:
    folder = tmp_path / "share" / "man1"
    paths = succeed("man", "--out", folder).split()
    names = {Path(path).name for path in paths}
    assert {path.name for path in folder.iterdir()} == names
    assert names >= {"celeriac.1"} | {f"celeriac-{name}.1" for name in COMMANDS}
    assert "celeriac-dead-list.1" in names and not any("help" in name for name in names)
    run = (folder / "celeriac-run.1").read_text()
    for text in ["NAME", "SYNOPSIS", "EXIT STATUS", "\\-\\-max\\-rows", "CELERIAC_MAX_ROWS"]:
        assert text in run
    assert "\\-\\-max\\-rows" not in (folder / "celeriac-dead-list.1").read_text(), "it is hidden there"
    assert succeed("man") == (folder / "celeriac.1").read_text()


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not here")
def test_groff_accepts_the_pages(tmp_path: Path) -> None:
    for path in succeed("man", "--out", tmp_path).split():
        done = subprocess.run(
            ["groff", "-k", "-man", "-Tutf8", "-ww", path], capture_output=True, text=True, check=True
        )
        assert not done.stderr, done.stderr
        text = re.sub(".\b", "", done.stdout)
        assert "EXIT STATUS" in text and "130, 143" in text


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = fail("man", "--out", tmp_path / "file" / "man1")
    assert "out: the folder" in words and "cannot be made" in words


# Exit status ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["run", "--help"], 0),
        ([], 2),
        (["walk"], 2),
        (["run", "--lanes", "0"], 2),
        (["run", "--config", "/nowhere/celeriac.toml"], 2),
        # Docker reserves 2 in health checks.
        (["health", "--config", "/nowhere/celeriac.toml"], 1),
        (["dead", "replay"], 2),
        (["dead", "purge", "--all", "--reason", "undecodable"], 2),
        (["capture", "/nowhere/a.jsonl", "--binding", "celeriac"], 2),
        (["capture", "-"], 2),
        (["completion", "tcsh"], 2),
        (["dead", "list", "--broker", NOWHERE], 1),
        (["capture", "/nowhere/a.jsonl", "--broker", NOWHERE], 1),
        (["replay", "/nowhere/a.jsonl", "--dry-run"], 1),
        (["migrate", "--database", "sqlite:////nowhere/db.sqlite3"], 1),
    ],
)
def test_exit_codes_of_commands(arguments: list[str], code: int) -> None:
    done = celeriac(*arguments)
    assert done.returncode == code, done.stderr.decode()
    assert code == 0 or done.stderr


def test_exit_codes_are_in_the_help_and_in_the_documents() -> None:
    said = succeed("--help")
    documents = [path.read_text() for path in DOCUMENTS]
    codes = re.findall(r"^  ([\d, ]+?)  +(\S.*)$", said.partition("Exit status:")[2], re.MULTILINE)
    assert [code for code, _ in codes] == ["0", "1", "2", "130, 143"]
    for code, meaning in codes:
        assert any(f"| {code} | {meaning} |" in document for document in documents), code


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_second_signal_ends_it_at_once(
    own_pipeline: Pipeline, number: signal.Signals, code: int
) -> None:
    daemon, database = own_pipeline.daemon, own_pipeline.database
    daemon.start_consuming()
    with database.connect() as connection:
        # A write that waits for a locked table keeps it from stopping.
        database.lock(connection)
        own_pipeline.broker.publish(results.result("t1"))
        wait_until(lambda: own_pipeline.broker.depth(RESULTS) == 0, "the message", 10)
        daemon.terminate(number)
        daemon.wait_for("stopping: storing the messages that were received")
        daemon.terminate(number)
        wait_until(lambda: not daemon.is_alive(), "the end", 10)
    assert daemon.exit_code == code


# Closed pipes ---------------------------------------------------------------------------------


def piped(command: str) -> tuple[int, str]:
    """Runs a command of the program with its output piped to `head -c 1`; returns its exit code and
    its standard error.
    """
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{binary()} {command} | head -c 1 > /dev/null"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_closed_pipe_ends_commands_without_an_error(
    rabbitmq: RabbitMQ, databases: Databases, tmp_path: Path
) -> None:
    broker = Broker(rabbitmq.create())
    broker.declare(DEAD)
    broker.publish(
        *[
            Message(b"x" * 200_000, {"delivery_mode": 2}, {"x-celeriac-error": "y" * 2_000})
            for _ in range(100)
        ],
        queue=DEAD,
    )
    first = succeed("dead", "list", "--broker", broker.url, "--limit", "1").splitlines()[1].split()
    empty = databases.empty("sqlite").url
    options = f"--broker {broker.url}"
    for command in [
        f"dead list {options}",
        f"dead list --json {options}",
        f"dead show {first[0]} --body {options}",
        f"dead show {first[0]} --json {options}",
        f"migrate --dry-run --database {empty}",
        f"migrate --database {empty}",
        "completion bash",
        "man",
        f"man --out {tmp_path}",
        "--help",
        "run --help",
        "--version",
    ]:
        code, said = piped(command)
        assert (code, "panicked" in said) == (0, False), f"{command}: {code}\n{said}"


def test_standard_error_can_be_closed(tmp_path: Path) -> None:
    """Errors and logs do not end the process if standard error is closed."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    for command, code in [(["dead", "purge"], 2), (["dead", "list", "--broker", NOWHERE], 1)]:
        done = subprocess.run(
            [binary(), *command], env=clean_environment(), stderr=write_end, check=False
        )
        assert done.returncode == code, command
    daemon = subprocess.Popen(
        [binary(), "run", "--broker", NOWHERE, "--database", f"sqlite:///{tmp_path}/db"],
        env=clean_environment(),
        stderr=write_end,
    )
    os.close(write_end)
    try:
        # By then it has logged that it starts and that it cannot connect.
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(2)
        daemon.terminate()
        assert daemon.wait(20) == 0
    finally:
        daemon.kill()
        daemon.wait()
