"""The container files: the rules of the Dockerfile, the compose file's form, the front's settings."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.protocol.errors import BY_CODE, from_json
from pipelines.settings.flags import parse_args
from tests.conftest import ROOT, free_ports
from tests.docker.front_rig import TOKEN, WAIT_S, run_front, running_upstream
from tests.docker.rules import COMPOSE_SCHEMA, instructions, lint

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = (DOCKER / "compose.yaml").read_text()
# What docker/nginx.conf says beyond Trivid's own codes: these two are answered before Trivid is asked.
FRONT_CODES = {"unauthorized", "not_served"}


def filled(value: str, **env: str) -> str:
    """A value of the compose file with its variables filled in, as Compose does it (`:-` only)."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: env.get(match[1]) or match[2], value)


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
    return found


def test_dockerfile_keeps_the_rules() -> None:
    assert lint(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("PYTHON=3.11.13-slim-bookworm", "PYTHON=latest", "not pinned: python:latest"),
        ("slim-bookworm", "slim-bullseye", "glibc too old: python:3.11.13-slim-bullseye"),
        ("uv:0.13.9", "uv", "not pinned: ghcr.io/astral-sh/uv"),
        ("COPY pyproject.toml", "ADD pyproject.toml", "ADD: use COPY"),
        ("COPY --chmod=u=rwX,go=rX assets assets", "COPY . .", "COPY . takes everything"),
        ("USER 10001:10001", "USER root", "user root: want uid:gid, not root"),
        ("USER 10001:10001", "", "no USER"),
        ("EXPOSE 8000 8001", "RUN true", "no EXPOSE"),
        ("EXPOSE 8000 8001", "RUN true", "RUN after USER"),
        ('CMD ["--demo"]', "CMD --demo", "CMD in shell form"),
        ('CMD ["python"', "CMD python", "HEALTHCHECK in shell form"),
        (
            "COPY pyproject.toml uv.lock ./",
            "COPY server.py pyproject.toml uv.lock ./",
            "code before dependencies",
        ),
        ("HOME=/tmp", "TRIVID_TOKEN=x", "secret in the image"),
        ("COPY --chmod=u=rwX,go=rX assets", "COPY assets", "unreadable after a umask of 077: assets"),
    ],
)
def test_the_rules_find_faults(old: str, new: str, expected: str) -> None:
    assert old in DOCKERFILE
    assert expected in lint(DOCKERFILE.replace(old, new))


def copied() -> list[str]:
    """What the Dockerfile takes from the project."""
    steps = [step for step in instructions(DOCKERFILE) if step.name == "COPY" and "--from" not in step.rest]
    return [source for step in steps for source in step.rest.split()[:-1] if not source.startswith("--")]


def test_the_image_gets_what_it_copies() -> None:
    lines = [line for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line]
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    assert sorted(allowed) == sorted(copied())
    for source in copied():
        assert (ROOT / source).exists()


def test_the_image_has_what_it_imports() -> None:
    own = {path.stem for path in ROOT.glob("*.py")} | {"pipelines", "scripts", "tests"}
    files = [
        path
        for source in copied()
        for path in (ROOT / source, *(ROOT / source).rglob("*"))
        if path.suffix == ".py"
    ]
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names} & own:
                assert top in copied() or f"{top}.py" in copied(), f"{path.name} imports {top}"


def test_compose_has_the_form() -> None:
    jsonschema.Draft202012Validator(COMPOSE_SCHEMA).validate(yaml.safe_load(COMPOSE))


@pytest.mark.parametrize(
    ("old", "new"), [("read_only: true", "read_onyl: true"), ("retries: 3", "retries: 0")]
)
def test_the_form_finds_faults(old: str, new: str) -> None:
    validator = jsonschema.Draft202012Validator(COMPOSE_SCHEMA)
    assert not validator.is_valid(yaml.safe_load(COMPOSE.replace(old, new)))


def test_only_the_front_is_published() -> None:
    published = {name: one.get("ports", []) for name, one in services().items()}
    assert [filled(port) for port in published.pop("front")] == ["127.0.0.1:8000:8080", "127.0.0.1:8001:8081"]
    assert published == {"gpu": [], "cpu": []}
    for name in published:
        service = services()[name]
        assert service["network_mode"] == "service:front"
        assert "--host" not in filled(service["command"])


def test_plain_up_takes_the_gpu() -> None:
    assert "COMPOSE_PROFILES=gpu" in (DOCKER / ".env").read_text().splitlines()
    assert {name: one.get("profiles") for name, one in services().items()} == {
        "front": None,
        "gpu": ["gpu"],
        "cpu": ["cpu"],
    }
    gpu = services()["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert set(device["capabilities"]) == {"gpu", "compute", "video", "utility"}
    assert gpu["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "compute,video,utility"
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in DOCKERFILE
    assert "deploy" not in services()["cpu"]


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_servers(name: str) -> None:
    service = services()[name]
    assert int(service["shm_size"].removesuffix("gb")) >= 1
    assert service["tmpfs"][0].startswith("/tmp:")
    assert "exec" in service["tmpfs"][0].split(",")
    assert service["volumes"] == ["weights:/weights"]
    settings = parse_args(shlex.split(filled(service["command"])), "")
    assert (settings.demo, settings.device) == (True, "cuda" if name == "gpu" else "cpu")
    chosen = {"TRIVID_ARGS": "--model segmentation=fcn_resnet50", "TRIVID_MAX_MEDIA_MB": "32"}
    settings = parse_args(shlex.split(filled(service["command"], **chosen)), "")
    (model,) = settings.models
    assert (model.source, settings.max_media_mb, settings.host) == ("fcn_resnet50", 32, "127.0.0.1")


def test_health_checks_ask_the_models() -> None:
    (in_image,) = [step.rest for step in instructions(DOCKERFILE) if step.name == "HEALTHCHECK"]
    program = json.loads(in_image[in_image.index("[") :])
    for name in ("gpu", "cpu"):
        assert services()[name]["healthcheck"]["test"] == ["CMD", *program]
    with running_upstream() as upstream:
        asked = program[-1].replace("8000", str(upstream.http_port))
        # A container may have a proxy set; the check must not ask it for its own loopback.
        env = {"http_proxy": "http://127.0.0.1:1"}
        subprocess.run([sys.executable, "-c", asked], check=True, timeout=WAIT_S, env=env)
        paths = [path for _, path, _, _ in upstream.requests]
    # It is loaded last: with it, all are there.
    assert paths == ["/v2/models/status/ready"]
    asked = program[-1].replace("8000", str(free_ports(1)[0]))
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, timeout=WAIT_S).returncode == 1


def test_refusals_have_the_form_of_our_errors() -> None:
    texts = re.findall(r"^ +\S+ '(\{.*\})';$", (DOCKER / "nginx.conf").read_text(), re.MULTILINE)
    assert len(texts) > 8
    for text in texts:
        fields = json.loads(text)
        assert fields["code"] in {*BY_CODE, *FRONT_CODES}
        assert fields["error"] == fields["message"]
        assert from_json(text.encode()).hint == fields["hint"]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"TRIVID_BIND": "0.0.0.0"}, "no TRIVID_TOKEN, and 0.0.0.0 is open to others"),
        ({"TRIVID_LISTEN": "0.0.0.0"}, "no TRIVID_TOKEN, and 0.0.0.0 is open to others"),
        ({"TRIVID_TOKEN": "tooshort"}, "shorter than 16"),
        ({"TRIVID_TOKEN": 'sixteen-or-more"; return 200;'}, "has a character other than"),
        ({"TRIVID_MAX_MEDIA_MB": "64m"}, "TRIVID_MAX_MEDIA_MB=64m is not a positive whole number"),
        ({"TRIVID_TIMEOUT_S": "0"}, "TRIVID_TIMEOUT_S=0 is not a positive whole number"),
        ({"TRIVID_BIND": "0.0.0.0", "TRIVID_ALLOW_ANONYMOUS": "1"}, "test is successful"),
        ({"TRIVID_BIND": "127.0.0.1"}, "test is successful"),
        ({"TRIVID_BIND": "0.0.0.0", "TRIVID_TOKEN": TOKEN}, "test is successful"),
    ],
)
def test_checks_its_settings(tmp_path: Path, env: dict[str, str], expected: str) -> None:
    process = run_front(tmp_path, "-t", env=env)
    output, _ = process.communicate(timeout=WAIT_S)
    assert expected in output
    assert process.returncode == (0 if expected == "test is successful" else 64)
    assert env.get("TRIVID_TOKEN", "(no token)") not in output
