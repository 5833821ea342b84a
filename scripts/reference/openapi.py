"""Write docs/openapi.json, the HTTP side of the endpoints, from the columns and options that serve them.

python -m scripts.reference.openapi            write the file
python -m scripts.reference.openapi --check    exit 1 if the file is not what would be written
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal, get_args, get_origin

from pipelines.protocol.columns import Column
from pipelines.protocol.errors import BY_CODE
from pipelines.protocol.options import OPTION_FIELDS, OPTION_TYPES, Options
from pipelines.serving.endpoint_table import ENDPOINT_TABLE, EndpointFacts
from scripts import ROOT

FILE = ROOT / "docs" / "openapi.json"
README = ROOT / "README.md"
MARKS = ("<!-- options: made by python -m scripts.reference.openapi -->", "<!-- end of options -->")
TRITON_TYPES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32", "float64": "FP64"}


def option_schema(name: str) -> dict[str, Any]:
    """One option as JSON schema."""
    kind, field = OPTION_TYPES[name], OPTION_FIELDS[name]
    described: dict[str, Any] = {"description": field.metadata["help"]}
    if get_origin(kind) is Literal:
        described |= {"type": "string", "enum": list(get_args(kind))}
    else:
        described["type"] = {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]
    default = getattr(Options(), name)
    return described if default == float("inf") else {**described, "default": default}


def tensor_schema(column: Column) -> dict[str, Any]:
    """One tensor in KServe's v2 form; its shape has the row dimension in front."""
    triton = "BYTES" if column.dtype is object else TRITON_TYPES[column.dtype.__name__]
    shape = ", ".join(str(dim) for dim in ("rows", *column.dims))
    return {"type": "object", "description": f"{column.name}: {triton} ({shape}): {column.help}"}


def operation(name: str, facts: EndpointFacts) -> dict[str, Any]:
    content: dict[str, Any]
    answer: dict[str, Any]
    options = {option: option_schema(option) for option in sorted(facts.allowed)}
    if facts.stream:
        properties = {"media": {"type": "string", "format": "byte"}, **options}
        content = {"application/json": {"schema": {"type": "object", "properties": properties}}}
        events = ", ".join(column.name for column in facts.outputs)
        answer = {"text/event-stream": {"schema": {"type": "string", "description": f"events of {events}"}}}
    else:
        inputs = [tensor_schema(column) for column in facts.inputs]
        schema = {
            "type": "object",
            "properties": {
                "parameters": {"type": "object", "properties": options, "additionalProperties": False},
                "inputs": {"type": "array", "items": {"oneOf": inputs}},
            },
        }
        content = {
            "application/json": {"schema": schema},
            "application/octet-stream": {"schema": {"type": "string"}},
        }
        outputs = [tensor_schema(column) for column in facts.outputs]
        answer = {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"outputs": {"type": "array", "items": {"oneOf": outputs}}},
                }
            }
        }
    return {
        "operationId": name,
        "summary": facts.help,
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "the answer; `error` says what is wrong with a row", "content": answer}
        },
    }


def document() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for name, facts in ENDPOINT_TABLE.items():
        verb = "generate_stream" if facts.stream else "infer"
        paths[f"/v2/models/{name}/{verb}"] = {"post": operation(name, facts)}
        ready = {"operationId": f"{name}_ready", "responses": {"200": {"description": "ready"}}}
        paths[f"/v2/models/{name}/ready"] = {"get": ready}
    codes = ", ".join(f"{code} ({kind.fault})" for code, kind in BY_CODE.items())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trivid",
            "version": "0.1.0",
            "description": (
                f"KServe v2 endpoints of a video and image inference server. Error codes: {codes}."
            ),
        },
        "paths": paths,
    }


def options_table() -> str:
    """The README's table of options, in the order of their definition."""
    lines = ["| option | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in OPTION_FIELDS.items():
        schema = option_schema(name)
        kind = ", ".join(f"`{choice}`" for choice in schema.get("enum", ())) or schema["type"]
        default = json.dumps(schema["default"]).strip('"') if "default" in schema else "none"
        lines.append(f"| `{name}` | {kind} | {default or 'empty'} | {field.metadata['help']} |")
    return "\n".join(lines)


def readme_with(table: str) -> str:
    """The README with its table between the two marks replaced."""
    head, _, rest = README.read_text().partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    return f"{head}{MARKS[0]}\n{table}\n{MARKS[1]}{tail}"


def main() -> int:
    wanted = {
        FILE: json.dumps(document(), indent=1, sort_keys=True) + "\n",
        README: readme_with(options_table()),
    }
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    if sys.argv[1:] == ["--check"]:
        for path in stale:
            print(f"error: {path.relative_to(ROOT)} is stale: run `make reference`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
