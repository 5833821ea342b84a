"""The rules for docker/Dockerfile and the form of docker/compose.yaml. Names no project file but uv.lock."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GLIBC_2_35_OR_LATER = ("bookworm", "trixie", "22.04", "24.04")

TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}


def closed(required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    """A JSON schema of a mapping that has these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


# The part of the Compose specification that the file uses: a misspelt key, which Compose may skip, fails
# here.
DEVICE = closed(("driver", "capabilities"), driver=TEXT, count={"enum": ["all"]}, capabilities=TEXTS)
SERVICE_SCHEMA = closed(
    ("image", "read_only", "cap_drop", "security_opt", "restart", "tmpfs", "volumes", "healthcheck"),
    image=TEXT,
    build=closed(("context", "dockerfile"), context=TEXT, dockerfile=TEXT),
    command=TEXT,
    entrypoint=TEXTS,
    user={"type": "string", "pattern": "^[1-9][0-9]*:[1-9][0-9]*$"},
    profiles=TEXTS,
    environment={"type": "object", "additionalProperties": {"type": "string"}},
    ports=TEXTS,
    network_mode={"type": "string", "pattern": "^service:[a-z]+$"},
    depends_on={
        "type": "object",
        "additionalProperties": closed(
            ("condition",), condition={"enum": ["service_started"]}, restart={"type": "boolean"}
        ),
    },
    read_only={"const": True},
    cap_drop={"const": ["ALL"]},
    security_opt={"const": ["no-new-privileges:true"]},
    init={"type": "boolean"},
    restart={"const": "unless-stopped"},
    shm_size={"type": "string", "pattern": "^[1-9][0-9]*gb$"},
    tmpfs=TEXTS,
    volumes=TEXTS,
    stop_grace_period={"type": "string", "pattern": "^[0-9]+s$"},
    healthcheck=closed(
        ("test", "interval", "timeout", "retries"),
        test=TEXTS,
        retries={"type": "integer", "minimum": 1},
        **{
            name: {"type": "string", "pattern": "^[0-9]+[sm]$"}
            for name in ("interval", "timeout", "start_period")
        },
    ),
    deploy=closed(
        ("resources",),
        resources=closed(
            ("reservations",), reservations=closed(("devices",), devices={"type": "array", "items": DEVICE})
        ),
    ),
)
COMPOSE_SCHEMA = {
    **closed(
        ("name", "services", "volumes"),
        name=TEXT,
        services={"type": "object", "additionalProperties": SERVICE_SCHEMA},
        volumes={"type": "object", "additionalProperties": {"type": "null"}},
    ),
    "patternProperties": {"^x-": {}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction of a Dockerfile, its continued lines joined; `stage` counts the FROM lines before."""

    name: str
    rest: str
    stage: int


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, variables with a default (ARG) filled in where an image is named."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    defaults: dict[str, str] = {}
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "ARG":
            key, _, value = rest.partition("=")
            defaults[key] = value
        if name == "FROM":
            rest = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], rest)
        stage = sum(one.name == "FROM" for one in found)
        found.append(Instruction(name=name, rest=" ".join(rest.split()), stage=stage))
    return found


def is_exec_form(rest: str) -> bool:
    command = rest[rest.find("[") :] if "[" in rest else ""
    try:
        return all(isinstance(word, str) for word in json.loads(command))
    except ValueError:
        return False


def lint(text: str) -> list[str]:
    """What is wrong with a Dockerfile by the project's rules; empty if nothing is."""
    steps = instructions(text)
    last = [step for step in steps if step.stage == steps[-1].stage]
    return [*_lint_images(steps), *_lint_steps(steps), *_lint_order(steps), *_lint_last_stage(last)]


def _lint_images(steps: Sequence[Instruction]) -> list[str]:
    images = [step.rest.split()[0] for step in steps if step.name == "FROM"]
    loose = [image for image in images if not re.search(r":\d+\.\d+\.\d+", image)]
    old = [image for image in images if "python" in image and not image.endswith(GLIBC_2_35_OR_LATER)]
    return [f"not pinned: {image}" for image in loose] + [f"glibc too old: {image}" for image in old]


def _lint_steps(steps: Sequence[Instruction]) -> list[str]:
    faults = ["ADD: use COPY" for step in steps if step.name == "ADD"]
    faults += [
        "COPY . takes everything" for step in steps if step.name == "COPY" and step.rest.startswith(". ")
    ]
    faults += ["root asked for" for step in steps if step.name == "RUN" and "sudo" in step.rest]
    secret = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY", re.IGNORECASE)
    return faults + [
        "secret in the image" for step in steps if step.name in ("ENV", "ARG") and secret.search(step.rest)
    ]


def _lint_order(steps: Sequence[Instruction]) -> list[str]:
    """Code must come after the dependencies, or each change of it installs them again."""
    code = [
        k for k, step in enumerate(steps) if step.name == "COPY" and re.search(r"\.py\b|pipelines", step.rest)
    ]
    lock = [k for k, step in enumerate(steps) if step.name == "COPY" and "uv.lock" in step.rest]
    sync = [k for k, step in enumerate(steps) if step.name == "RUN" and "uv sync --locked" in step.rest]
    if not (code and lock and sync):
        return ["no COPY of uv.lock, uv sync --locked and COPY of the code"]
    return [] if lock[0] < sync[0] < code[0] else ["code before dependencies"]


def _lint_last_stage(steps: Sequence[Instruction]) -> list[str]:
    names = [step.name for step in steps]
    missing = {"USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"} - set(names)
    faults = [f"no {name}" for name in sorted(missing)]
    users = [step.rest for step in steps if step.name == "USER"]
    faults += [
        f"user {user}: want uid:gid, not root" for user in users if not re.match(r"[1-9]\d*:[1-9]\d*$", user)
    ]
    if users and "RUN" in names[names.index("USER") :]:
        faults.append("RUN after USER")
    plain = [step.rest for step in steps if step.name == "COPY" and not step.rest.startswith("--")]
    faults += [f"unreadable after a umask of 077: {rest.split()[0]}" for rest in plain]
    commands = [step for step in steps if step.name in ("ENTRYPOINT", "CMD", "HEALTHCHECK")]
    return faults + [f"{step.name} in shell form" for step in commands if not is_exec_form(step.rest)]
