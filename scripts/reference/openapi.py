"""The HTTP side of the endpoints for docs/openapi.json, from the columns and options that serve them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pipelines.protocol.columns import Column
from pipelines.protocol.errors import BY_CODE
from pipelines.protocol.kserve import DTYPES
from pipelines.protocol.options import OPTION_FIELDS, OPTION_TYPES, Options
from pipelines.serving.endpoint_table import ENDPOINT_TABLE, EndpointFacts

Schema = dict[str, Any]


def option_schema(name: str) -> Schema:
    """One option as JSON schema."""
    kind, field = OPTION_TYPES[name], OPTION_FIELDS[name]
    described: Schema = {"description": field.metadata["help"]}
    if get_origin(kind) is Literal:
        described |= {"type": "string", "enum": list(get_args(kind))}
    else:
        described["type"] = {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]
    default = getattr(Options(), name)
    return described if default == float("inf") else {**described, "default": default}


def triton_type(column: Column) -> str:
    """What Triton calls the type of a column's values."""
    return next((name for name, dtype in DTYPES.items() if dtype is column.dtype), "BYTES")


def named_tensors(name: str, columns: Iterable[Column]) -> Schema:
    """A list of tensors in KServe's v2 form under a name; their shapes have the row dimension in front."""
    schemas = []
    for column in columns:
        shape = ", ".join(str(dim) for dim in ("rows", *column.dims))
        about = f"{column.name}: {triton_type(column)} ({shape}): {column.help}"
        schemas.append({"type": "object", "description": about})
    return {name: {"type": "array", "items": {"oneOf": schemas}}}


def json_object(properties: Schema) -> Schema:
    return {"application/json": {"schema": {"type": "object", "properties": properties}}}


def operation(name: str, facts: EndpointFacts) -> Schema:
    options = {option: option_schema(option) for option in sorted(facts.allowed)}
    if facts.stream:
        content = json_object({"media": {"type": "string", "format": "byte"}, **options})
        events = ", ".join(column.name for column in facts.outputs)
        answer = {"text/event-stream": {"schema": {"type": "string", "description": f"events of {events}"}}}
    else:
        parameters = {"type": "object", "properties": options, "additionalProperties": False}
        content = json_object({"parameters": parameters, **named_tensors("inputs", facts.inputs)})
        content["application/octet-stream"] = {"schema": {"type": "string"}}
        answer = json_object(named_tensors("outputs", facts.outputs))
    said = {"description": "the answer; `error` says what is wrong with a row", "content": answer}
    return {
        "operationId": name,
        "summary": facts.help,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": said},
    }


def description() -> Schema:
    """The whole file."""
    paths: Schema = {}
    for name, facts in ENDPOINT_TABLE.items():
        verb = "generate_stream" if facts.stream else "infer"
        paths[f"/v2/models/{name}/{verb}"] = {"post": operation(name, facts)}
        ready = {"operationId": f"{name}_ready", "responses": {"200": {"description": "ready"}}}
        paths[f"/v2/models/{name}/ready"] = {"get": ready}
    codes = ", ".join(f"{code} ({kind.fault})" for code, kind in BY_CODE.items())
    about = f"KServe v2 endpoints of a video and image inference server. Error codes: {codes}."
    info = {"title": "Trivid", "version": "0.1.0", "description": about}
    return {"openapi": "3.1.0", "info": info, "paths": paths}
