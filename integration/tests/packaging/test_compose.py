"""`docker-compose.yml` and `Dockerfile` match the repository, and the site that they start works.

No image is built and no container is started; these tests check what can be checked without.
"""

from __future__ import annotations

import http.cookiejar
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from harness.broker import Broker
from harness.command import succeed
from harness.daemon import DOCUMENTS, REPOSITORY, Daemon
from harness.processes import Process, wait_until
from harness.project import clean_environment
from harness.services import HOST, RabbitMQ, free_port

SITE = REPOSITORY / "integration" / "compose"
BASE = REPOSITORY / "docker-compose.yml"
OVERRIDES = sorted(SITE.glob("*.yml"))
FILES = [BASE, *OVERRIDES]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
#: The instructions, each on one line.
INSTRUCTIONS = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()

named = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
variants = pytest.mark.parametrize(
    "files", [[BASE], *([BASE, path] for path in OVERRIDES)], ids=lambda files: files[-1].name
)


class Override(dict):
    """A value that replaces that of the base file instead of being merged with it."""


class Loader(yaml.SafeLoader):
    pass


def _override(loader: Loader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return Override(loader.construct_mapping(node, deep=True))


Loader.add_constructor("!override", _override)


def read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), Loader)


def merged(base: Any, over: Any) -> Any:
    """Merges files as Compose does, as far as it is needed here."""
    if not isinstance(over, dict) or not isinstance(base, dict) or isinstance(over, Override):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def services(files: list[Path]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path in files:
        made = merged(made, read(path))
    return made["services"]


def stages() -> dict[str, str]:
    """The stages of the Dockerfile in order, each with its base image."""
    found = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(found) == DOCKERFILE.count("FROM "), "every stage has a name"
    return {name: image for image, name in found}


def helps(*command: str) -> str:
    return succeed(*command, "--help")


# Files and names -----------------------------------------------------------------------------


def is_pinned(image: str) -> bool:
    return re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?(-[a-z]+)*", image) is not None


def test_images_are_pinned() -> None:
    assert not is_pinned("postgres") and not is_pinned("postgres:latest")
    assert not is_pinned("postgres:17")
    images = [image for image in stages().values() if image not in {*stages(), "scratch"}]
    for path in FILES:
        for service in read(path)["services"].values():
            if "image" in service and "build" not in service:
                images.append(service["image"])
    assert len(images) == 5
    assert [image for image in images if not is_pinned(image)] == []


def test_packages_are_pinned_as_in_the_tests() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        return dict(re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)", line).groups() for line in lines)

    ours = pins(SITE / "requirements.txt")
    tested = pins(REPOSITORY / "integration/requirements/celery-5.7.txt")
    assert len(ours) >= 5
    assert {name: tested.get(name) for name in ours} == ours


def test_the_dockerfile_agrees_with_cargo() -> None:
    package = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["package"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE))
    assert labels["version"] == package["version"]
    assert labels["description"] == package["description"]
    assert labels["licenses"] == package["license"]
    rust = re.search(r"FROM rust:([\d.]+)-", DOCKERFILE).group(1)
    oldest = package["rust-version"]
    assert [int(part) for part in rust.split(".")] >= [int(part) for part in oldest.split(".")]


def test_the_last_stage_is_the_daemon_and_not_root() -> None:
    assert [*stages().items()][-1] == ("celeriac", "scratch")
    last = INSTRUCTIONS[INSTRUCTIONS.index("FROM scratch AS celeriac") :]
    assert "USER 65532:65532" in last
    assert 'ENTRYPOINT ["/usr/local/bin/celeriac"]' in last


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = [pattern[1:] for pattern in ignored if pattern.startswith("!")]
    assert "*" in ignored
    copies = [line.split()[1:-1] for line in INSTRUCTIONS if line.startswith("COPY ")]
    sources = [source for copy in copies if not copy[0].startswith("--") for source in copy]
    assert len(sources) > 10
    for source in map(Path, sources):
        assert (REPOSITORY / source).exists(), source
        whole = [source, *source.parents]
        assert any(path.match(pattern) for path in whole for pattern in kept), source
    for pattern in kept:
        assert [*REPOSITORY.glob(pattern)], f".dockerignore names {pattern}, which is gone"


@named
def test_targets_volumes_and_files_exist(path: Path) -> None:
    content = read(path)
    for name, service in content["services"].items():
        if "build" in service:
            assert service["build"]["target"] in stages(), name
        volumes = [volume.partition(":")[0] for volume in service.get("volumes", [])]
        assert set(volumes) <= set(content.get("volumes", {})), name
    for mentioned in re.findall(r"-f (\S+\.yml)", path.read_text()):
        assert (REPOSITORY / mentioned).exists(), mentioned
    assert set(content["services"]) <= set(read(BASE)["services"])


def test_every_override_is_explained() -> None:
    for path in OVERRIDES:
        relative = path.relative_to(REPOSITORY)
        assert f"-f docker-compose.yml -f {relative}" in BASE.read_text()
        assert any(str(relative) in document.read_text() for document in DOCUMENTS)


def test_settings_and_flags_exist() -> None:
    # THEN every variable is a setting of the daemon
    variables = set(re.findall(r"\[env: (\w+)", helps("run")))
    texts = [DOCKERFILE, *(path.read_text() for path in FILES)]
    used = {name for text in texts for name in re.findall(r"CELERIAC_\w+", text)}
    assert {"CELERIAC_BROKER", "CELERIAC_DATABASE", "CELERIAC_LISTEN"} <= used
    # This one is used by the build only.
    while_building = set(re.findall(r"^ARG (\w+)$", DOCKERFILE, re.MULTILINE))
    assert while_building == {"CELERIAC_COMMIT"}
    assert "CELERIAC_COMMIT" in (REPOSITORY / "build.rs").read_text()
    assert used - while_building <= variables
    # THEN every command and its options exist
    commands = [yaml.safe_load(text) for text in re.findall(r"CMD (\[.*\])$", DOCKERFILE, re.M)]
    for path in FILES:
        celeriac = read(path)["services"].get("celeriac", {})
        if "command" in celeriac:
            commands.append(celeriac["command"])
        if "healthcheck" in celeriac:
            commands.append(celeriac["healthcheck"]["test"][1:])
    assert len(commands) == 3
    for command in commands:
        words = [word for word in command if not word.endswith("/celeriac")]
        said = helps(words[0])
        for option in words[1:]:
            assert option.partition("=")[0] in said, command


# Services ------------------------------------------------------------------------------------


@variants
def test_every_service_has_a_health_check(files: list[Path]) -> None:
    for name, service in services(files).items():
        check = service["healthcheck"]
        assert check["test"][0] == "CMD" and {"interval", "timeout"} <= check.keys(), name


def test_the_start_order() -> None:
    order = {
        "rabbitmq": set(),
        "database": set(),
        "site": {"database", "rabbitmq"},
        "worker": {"rabbitmq", "site"},
        "celeriac": {"database", "rabbitmq", "site"},
    }
    found = services([BASE])
    assert {name: set(service.get("depends_on", ())) for name, service in found.items()} == order
    # Workers with `rpc://` must not send results before the queue exists.
    assert "celeriac" in services([BASE, SITE / "rpc.yml"])["worker"]["depends_on"]


@variants
def test_dependencies_wait_for_health(files: list[Path]) -> None:
    for service in services(files).values():
        for condition in service.get("depends_on", {}).values():
            assert condition == {"condition": "service_healthy"}


@variants
def test_ports_are_published_on_loopback_only(files: list[Path]) -> None:
    ports = [port for service in services(files).values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+", port) for port in ports)


@variants
def test_our_services_are_confined(files: list[Path]) -> None:
    for name, service in services(files).items():
        if "build" in service:
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name


@variants
def test_all_services_use_the_same_database_and_broker(files: list[Path]) -> None:
    found = services(files)
    site, worker = found["site"]["environment"], found["worker"]["environment"]
    daemon, rabbitmq = found["celeriac"]["environment"], found["rabbitmq"]["environment"]
    # GIVEN the database, whose settings have names that depend on its kind
    own = found["database"]["environment"]
    kind = {"postgres": "POSTGRES_{}", "mariadb": "MARIADB_{}"}
    names = kind[found["database"]["image"].partition(":")[0]]
    database = names.format("DB") if "POSTGRES" in names else names.format("DATABASE")
    login = f"{own[names.format('USER')]}:{own[names.format('PASSWORD')]}"
    # THEN Django and the daemon use the same values
    url = urllib.parse.urlsplit(daemon["CELERIAC_DATABASE"])
    assert (url.netloc, url.path) == (f"{login}@database", f"/{own[database]}")
    engine = {"postgres": "postgresql", "mysql": "mysql"}[url.scheme]
    for environment in (site, worker):
        of_django = [environment[f"DATABASE_{name}"] for name in ("USER", "PASSWORD", "HOST", "NAME")]
        assert of_django == [url.username, url.password, url.hostname, url.path[1:]]
        assert environment["DATABASE_ENGINE"] == f"django.db.backends.{engine}"
        # THEN the same holds for the broker
        assert environment["CELERY_BROKER_URL"] == daemon["CELERIAC_BROKER"]
    broker = urllib.parse.urlsplit(daemon["CELERIAC_BROKER"])
    assert broker.hostname == found["rabbitmq"]["hostname"] == "rabbitmq"
    login = (rabbitmq["RABBITMQ_DEFAULT_USER"], rabbitmq["RABBITMQ_DEFAULT_PASS"])
    assert (broker.username, broker.password) == login


@variants
def test_compose_accepts_the_files(files: list[Path]) -> None:
    compose = [["docker", "compose"], ["docker-compose"]]
    asked = [
        command
        for command in compose
        if shutil.which(command[0])
        and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
    ]
    if not asked:
        pytest.skip("Docker Compose is not installed")
    options = [option for path in files for option in ("--file", path)]
    command = [*asked[0], *options, "config", "--quiet"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The site -----------------------------------------------------------------------------------


class Page:
    """The page in a browser with cookies and the CSRF token of the form."""

    def __init__(self, port: int) -> None:
        self.url = f"http://{HOST}:{port}/"
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(cookies)

    def get(self, path: str = "") -> str:
        with self.opener.open(self.url + path, timeout=10) as answer:
            return answer.read().decode()

    def submit(self, path: str, form: str, **fields: str) -> str:
        """Submits the form of the page."""
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(form)).group(1)
        data = urllib.parse.urlencode({"csrfmiddlewaretoken": token, **fields}).encode()
        with self.opener.open(self.url + path, data, timeout=10) as answer:
            return answer.read().decode()


@pytest.fixture
def page(python: dict[str, Path], rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Page]:
    """Site, worker and daemon as in `docker-compose.yml`, but with SQLite."""
    of_celery, port, url = python["celery-5.7"], free_port(), rabbitmq.create()
    env = clean_environment() | {
        "CELERY_BROKER_URL": url,
        "DATABASE_ENGINE": "django.db.backends.sqlite3",
        "DATABASE_NAME": str(tmp_path / "db.sqlite3"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "C_FORCE_ROOT": "1",
    }
    admin = services([BASE])["site"]["environment"]
    env |= {name: admin[name] for name in ("ADMIN_USER", "ADMIN_PASSWORD")}
    command = services([BASE])["site"]["command"]
    serve = command[-1].replace("python ", f"{of_celery} ").replace("0.0.0.0:8000", f"{HOST}:{port}")
    site = Process("site", [*command[:-1], serve], tmp_path / "site.log", env=env, cwd=SITE)
    celery, *options = services([BASE])["worker"]["command"]
    worker = [of_celery.with_name(celery), *options]
    processes = [
        site,
        Process("worker", worker, tmp_path / "worker.log", env=env, cwd=SITE),
        Daemon(tmp_path / "celeriac.log", Broker(url).url, f"sqlite:///{tmp_path}/db.sqlite3"),
    ]
    try:
        for process in processes:
            process.start()
            if process is site:
                process.wait_for("Starting development server", 120)
        yield Page(port)
    finally:
        for process in processes:
            process.kill()


def test_the_page_sends_tasks_and_shows_their_rows(page: Page) -> None:
    kinds = re.findall(r'name="kind" value="([^"]+)"', page.get())
    assert {"success", "failure", "retry", "progress", "chord"} <= set(kinds)
    assert "0 rows" in page.get("rows")
    for kind in kinds:
        page.submit("send", form="", kind=kind)
    # THEN every task has its row: single tasks, a chord with three members, and those of a group
    expected = 4 + 4 + 500

    def all_are_there() -> bool:
        rows = page.get("rows")
        ended = re.search(r"(\d+) rows, (\d+) of them final", rows)
        return ended is not None and ended.groups() == (f"{expected}",) * 2

    wait_until(all_are_there, f"{expected} rows", 120)
    # THEN an unknown kind is refused
    with pytest.raises(urllib.error.HTTPError, match="404"):
        page.submit("send", form="", kind="none")
    # THEN the admin lists the rows, with its style sheet
    login = "admin/login/?next=/admin/django_celery_results/taskresult/"
    listed = page.submit(login, form=login, username="admin", password="admin")
    assert f"{expected} task results" in listed
    assert "{" in page.get("static/admin/css/base.css")
