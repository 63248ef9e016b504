# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The JSON Schema of the job document, from the grammar: what the runner checks documents by."""

from __future__ import annotations

import json
from typing import Any, Mapping

from ._job import (
    JOB,
    KEPT,
    KEPT_OF_LOGS,
    MACHINE_ID_PATTERN,
    NO_WILD_PATTERN,
    NOT_BY_SFTP,
    OF_LOGS,
    PRIVATE_ROOTS,
    SETTINGS,
    VERSION,
    Field,
)

_SCHEMA_TYPES = {
    "text": "string",
    "time": "string",
    "duration": "string",
    "size": "string",
    "amount": "string",
    "flag": "boolean",
    "number": "integer",
    "factor": "number",
    "secret": "string",
    "mapping": "object",
    "list": "array",
}


def _schema(field: Field) -> dict[str, Any]:
    kind = _SCHEMA_TYPES[field.kind]
    schema: dict[str, Any] = {
        "description": field.description,
        "type": [kind, "null"] if field.optional else kind,
    }
    if field.choices:
        schema["enum"] = list(field.choices)
    if field.limits:
        schema["minimum"], schema["maximum"] = field.limits
    if field.element:
        schema["items"] = _schema(field.element)
        schema["uniqueItems"] = True
    if field.kind == "mapping":
        parts = [part for part in field.parts if not part.option]
        schema["properties"] = {part.name: _schema(part) for part in parts}
        if not field.partial:
            schema["required"] = [part.name for part in parts if not part.later]
        schema["additionalProperties"] = False
    if field.later:
        schema["default"] = field.default()
    schema.update(field.schema)
    return schema


def _properties(**schemas: Any) -> dict[str, Any]:
    return {"properties": schemas}


_NO_WORDS_OF_SFTP = {"items": {"not": {"enum": list(NOT_BY_SFTP)}}}


def _with(**values: Any) -> dict[str, Any]:
    """What has these fields, each with one of these values."""
    return dict(_properties(**{name: {"enum": list(some)} for name, some in values.items()}), required=list(values))


def _rules_of_elements() -> list[dict[str, Any]]:
    """Those between an element's own settings, and between them and the job's."""

    def own(settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return _properties(elements={"items": dict(_properties(settings=settings), **more)})

    one_way = _with(direction=("to_partner", "from_partner"))
    kept = ("never", "synced")
    mirror = {"if": _with(direction=("both",)), "then": _properties(delete={"enum": list(kept)})}
    some = {"if": _with(verify=("checksum",)), "then": _properties(verify_every=False)}
    log = _with(kind=("log",))
    use = {part.name: False for part in SETTINGS if part.name not in OF_LOGS}
    of_log = _properties(
        preserve={"items": {"enum": list(KEPT_OF_LOGS)}}, direction=one_way["properties"]["direction"], **use
    )
    going_one_way = dict(_properties(settings=dict(one_way, type="object")), required=["settings"])
    return [
        own({"allOf": [mirror, some]}),
        _properties(elements={"items": {"if": log, "then": _properties(settings=of_log)}}),
        {
            "if": _properties(settings=_properties(direction={"const": "both"})),
            "then": {
                "allOf": [
                    own({"if": _with(delete=("extraneous",)), "then": one_way}),
                    _properties(elements={"items": {"if": log, "then": going_one_way}}),
                ]
            },
        },
        {
            "if": _properties(settings=_properties(delete={"const": "extraneous"})),
            "then": own({"if": _with(direction=("both",)), "then": _with(delete=kept)}),
        },
        {
            "if": _properties(settings=_with(verify=("checksum",))),
            "then": own({"if": {"type": "object", "required": ["verify_every"]}, "then": _with(verify=("metadata",))}),
        },
        {
            "if": _properties(partner=_properties(connection={"const": "sftp"})),
            "then": own(_properties(preserve=_NO_WORDS_OF_SFTP, compress=False)),
        },
    ]


def _rules() -> list[dict[str, Any]]:
    """The rules between fields, as far as JSON Schema can say them."""
    null, none, text = {"type": "null"}, {"maxItems": 0}, {"type": "string"}
    password = _properties(password={"const": KEPT})
    ways = [
        {"type": "null"},
        _properties(every=text, at=null, calendar=null, days=none, day_of_month=none),
        _properties(every=null, at={"type": "array"}, calendar=null, day_of_month=none),
        _properties(every=null, at={"type": "array"}, calendar=null, days=none),
        _properties(every=null, at=null, calendar=text, days=none, day_of_month=none),
    ]
    roots = "|".join(root[1:] for root in PRIVATE_ROOTS)
    shared = {"pattern": "^/(?!(?:%s)(?:/|$))" % roots}
    return [
        _properties(schedule={"anyOf": ways}),
        {
            "if": _properties(
                schedule=_properties(every=null, at=null),
                notification=_properties(events={"contains": {"const": "late"}}),
            ),
            "then": _properties(notification=dict(_properties(late_after=text), required=["late_after"])),
        },
        _properties(
            settings={
                "allOf": [
                    {
                        "if": _properties(direction={"const": "both"}),
                        "then": _properties(delete={"enum": ["never", "synced"]}),
                    },
                    {
                        "if": dict(_properties(verify={"const": "checksum"}), required=["verify"]),
                        "then": _properties(verify_every=null),
                    },
                ]
            }
        ),
        {
            "if": _properties(partner=_properties(connection={"const": "local"})),
            "then": _properties(partner=_properties(port=null, host_key=none), account=null),
            "else": _properties(
                partner=_properties(port={"type": "integer"}),
                account={"type": "object"},
            ),
        },
        {
            "if": _properties(partner=_properties(connection={"const": "ssh"})),
            "then": _properties(
                account=_properties(password=null),
                elements={"items": _properties(partner_path={"pattern": NO_WILD_PATTERN})},
            ),
        },
        {
            "if": _properties(partner=_properties(connection={"const": "sftp"})),
            "then": _properties(
                settings=_properties(preserve=_NO_WORDS_OF_SFTP),
                elements={"items": _properties(kind={"const": "tree"})},
                account={"if": dict(password, required=["password"]), "then": _properties(private_key_file=null)},
            ),
        },
        *_rules_of_elements(),
        {
            "if": _properties(scope={"const": "system"}),
            "then": _properties(elements={"items": _properties(path=shared)}),
        },
        {
            "if": _properties(scope={"const": "system"}, partner=_properties(connection={"enum": ["ssh", "local"]})),
            "then": _properties(elements={"items": _properties(partner_path=shared)}),
        },
    ]


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the job document. What it cannot say (overlaps) the module checks."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:serversync:job:%d" % VERSION,
        "title": "Job document of serversync.core",
    }
    schema.update(_schema(JOB))
    version = {"description": "Version of this format.", "const": VERSION}
    machine_id = {
        "description": (
            "The machine id of the server that the job was declared on; runners of others refuse the document. Without "
            "it none does."
        ),
        "type": "string",
        "pattern": MACHINE_ID_PATTERN,
    }
    schema["properties"] = dict({"version": version, "machine_id": machine_id}, **schema["properties"])
    schema["required"] = ["version"] + schema["required"]
    schema["allOf"] = _rules()
    return schema


def schema_text() -> str:
    """The text of job.schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
