# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the JSON Schemas from the grammar in plugins/module_utils/_job.py and _schema.py.

One is of a job's document, for the runner and other tools; one is of lists of jobs as people write them, for editors.
"""

from __future__ import annotations

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OF_DOCUMENTS = ROOT / "roles" / "runner" / "files" / "serversync" / "job.schema.json"
OF_LISTS = ROOT / "docs" / "jobs.schema.json"

#: Text that Jinja fills in; until then nothing more is known of it.
TEMPLATE = r"\{[{%]"
NUMBER = r"^\s*[+-]?[0-9]+\s*$"
FACTOR = r"^\s*[+-]?[0-9]+(?:\.[0-9]*)?\s*$"
FLAG = r"^\s*(?:%s)\s*$"
#: What YAML may make of a scalar.
TYPES = {
    "text": ["string", "integer"],
    "time": ["string"],
    "duration": ["string", "integer"],
    "size": ["string"],
    "amount": ["string", "integer"],
    "flag": ["boolean", "string", "integer"],
    "number": ["integer", "string"],
    "factor": ["number", "string"],
    "secret": ["string", "integer"],
}


def as_written(grammar, field, entry=False):
    """The schema of a field in every spelling that the grammar reads, with null for its default unless it is an entry.

    What the grammar checks beyond the kind is in documents only: there each value has one spelling.
    """
    null = [] if entry or field.required else ["null"]
    schema = {"description": field.description}
    if field.kind == "mapping":
        parts = [part for part in field.parts if part.name not in grammar.OF_THE_TASK]
        schema.update(type=["object", "string", *null], pattern=TEMPLATE, additionalProperties=False)
        schema["properties"] = {part.name: as_written(grammar, part) for part in parts}
        schema["required"] = [part.name for part in parts if part.required]
        return schema
    if field.kind == "list":
        schema.update(type=["array", "string", *null], items=as_written(grammar, field.element, entry=True))
        if field.element.kind == "mapping":
            schema["pattern"] = TEMPLATE
        else:
            schema["type"].append("integer")
    elif field.choices:
        schema["anyOf"] = [
            {"enum": [*field.choices, *(None for _null in null)]},
            {"type": "string", "pattern": TEMPLATE},
        ]
    else:
        schema["type"] = TYPES[field.kind] + null
    if field.kind == "duration":
        schema.update(minimum=0, maximum=0)  # all others need a unit
    elif field.kind in ("number", "factor"):
        spelling = NUMBER if field.kind == "number" else FACTOR
        schema.update(pattern="%s|%s" % (spelling, TEMPLATE), minimum=field.limits[0], maximum=field.limits[1])
    elif field.kind == "flag":
        words = [spelling for word in grammar.FLAGS for spelling in (word, word.capitalize(), word.upper())]
        schema.update(pattern="%s|%s" % (FLAG % "|".join(words), TEMPLATE), minimum=0, maximum=1)
    if field.default() is not None:
        schema["default"] = field.default()
    return schema


def schema_of_lists(grammar):
    """The JSON Schema (draft 2020-12) of jobs in YAML: a file with a list of them, or one with variables.

    Lists of jobs are the variables whose names are those of the pattern of groups in docs/declaring.md.
    """
    jobs = {"description": "Jobs.", "type": ["array", "string", "null"], "pattern": TEMPLATE}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:serversync:jobs:%d" % grammar.VERSION,
        "title": "Jobs of serversync.core as people write them",
        "type": ["array", "object"],
        "items": {"$ref": "#/$defs/job"},
        "patternProperties": {"^[a-z0-9]+_jobs$": dict(jobs, items={"$ref": "#/$defs/job"})},
        "$defs": {"job": as_written(grammar, grammar.JOB, entry=True)},
    }


def texts(grammar, documents):
    """The files, and what each has to say; `documents`: the schema of documents as text."""
    lists = json.dumps(schema_of_lists(grammar), indent=2, ensure_ascii=False) + "\n"
    return {OF_DOCUMENTS: documents, OF_LISTS: lists}


def main() -> int:
    sys.path.insert(0, str(ROOT / "plugins"))
    from module_utils import _job, _schema

    for path, text in texts(_job, _schema.schema_text()).items():
        path.write_text(text, encoding="utf-8")
        print("wrote %s" % path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
