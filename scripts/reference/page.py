"""Write docs/openapi.json, and docs/reference.md: `template.md` with tables made from the serving code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable

from pipelines.protocol.answers import Answer, answer_columns
from pipelines.protocol.columns import STREAM_COLUMNS, Column
from pipelines.protocol.errors import BY_CODE
from pipelines.protocol.options import OPTION_FIELDS, STREAM_OPTIONS
from pipelines.serving.endpoint_table import ENDPOINT_TABLE
from pipelines.settings.flags import parse_args
from pipelines.tasks import TASKS
from scripts import ROOT
from scripts.reference import fill, table, write_or_check
from scripts.reference.openapi import description, option_schema, triton_type

# Defaults that follow from the machine.
OF_THE_MACHINE = ("--workers ", "--max-memory-mb ")


def endpoints() -> str:
    kinds = {True: "stream", False: "unary"}
    rows = [(f"`{name}`", kinds[facts.stream], facts.help) for name, facts in ENDPOINT_TABLE.items()]
    status = ("`status`", "unary", "models, labels, limits and counters as JSON")
    return table(("endpoint", "kind", "what it is"), [*rows, status])


def options() -> str:
    rows = []
    for name, field in OPTION_FIELDS.items():
        schema = option_schema(name)
        kind = ", ".join(f"`{choice}`" for choice in schema.get("enum", ())) or schema["type"]
        default = json.dumps(schema["default"]).strip('"') if "default" in schema else "none"
        rows.append((f"`{name}`", kind, default or "empty", field.metadata["help"]))
    return table(("option", "type", "default", "meaning"), rows)


def options_of_endpoints() -> str:
    """Which endpoint takes which options; a stream takes those of its task and of pulls."""
    rows = [
        (f"`{name}`", ", ".join(f"`{option}`" for option in facts.allowed))
        for name, facts in ENDPOINT_TABLE.items()
        if facts.allowed and not facts.stream
    ]
    pulls = ", ".join(f"`{option}`" for option in STREAM_OPTIONS)
    return table(("endpoint", "its options"), [*rows, ("`…_stream`", f"those of its task, and {pulls}")])


def columns_table(columns: Iterable[Column]) -> str:
    rows = [
        (f"`{one.name}`", triton_type(one), f"({', '.join(map(str, one.dims))})", one.help) for one in columns
    ]
    return table(("column", "type", "shape", "meaning"), rows)


def answers() -> str:
    """The columns that all answers have, then those of each task, then those of streams."""
    common = answer_columns(Answer)
    shared = {column.name for column in common}
    parts = ["Every answer has these columns:", columns_table(common)]
    for name, task in TASKS.items():
        own = [column for column in answer_columns(task.answer) if column.name not in shared]
        parts += [f"### {name}", columns_table(own)]
    return "\n\n".join([*parts, "### Streams: additional columns", columns_table(STREAM_COLUMNS)])


def errors() -> str:
    rows = [(f"`{code}`", kind.fault, kind.__doc__ or "") for code, kind in BY_CODE.items()]
    return table(("code", "whose fault", "what it means"), rows)


def flags() -> str:
    """The flags of server.py, as argparse prints them, on lines that need no wrapping."""
    os.environ["COLUMNS"] = "2000"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parse_args(["--help"], "")
    listed = printed.getvalue().split("\noptions:\n")[1].split("\n\n")[0]
    rows = []
    # A flag stands two columns in; what follows further to the right belongs to it.
    for entry in re.split(r"\n(?=  -)", listed):
        flag, *texts = re.split(r"\s{2,}", entry.strip())
        text = " ".join(texts)
        if flag.startswith(OF_THE_MACHINE):
            text = re.sub(r"\(default: .*\)$", "(default: by the machine)", text)
        rows.append((f"`{flag}`", text))
    return table(("flag", "meaning"), [row for row in rows if "--help" not in row[0]])


def exit_codes(file: str) -> str:
    """The exit codes that a program's text lists, e.g. `Exit codes: 0 all well, 1 some media failed.`"""
    text = re.split(r"exit codes: ", (ROOT / file).read_text(), flags=re.IGNORECASE)[1]
    listed = " ".join(re.split(r"\.?\n(?:\n|\"\"\")", text)[0].split())
    return table(("code", "meaning"), re.findall(r"(\d+) (.+?)(?:, (?=\d)|$)", listed))


def document() -> str:
    tables = (endpoints, options, options_of_endpoints, answers, errors, flags)
    codes = {f"{name}_exit_codes": exit_codes(f"{name}.py") for name in ("server", "client")}
    return fill("template.md", **{each.__name__: each() for each in tables}, **codes)


if __name__ == "__main__":
    api = json.dumps(description(), indent=1, sort_keys=True) + "\n"
    sys.exit(write_or_check("openapi.json", api) | write_or_check("reference.md", document()))
