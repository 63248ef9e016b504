# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The grammar of a job: bad input, equal spellings, merging, normal form, schema."""
# ruff: noqa: S105, S108  no file is made below the /tmp that these declarations name, and no secret is one

from __future__ import annotations

import base64
import copy
import json
from email.message import EmailMessage
from pathlib import Path

import jsonschema
import pytest
from ansible_collections.serversync.core.plugins.module_utils import _copies, _host_key, _job, _schedule, _schema
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import generate_schema

ROOT = Path(__file__).resolve().parents[4]
SCHEMA = _schema.json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
LISTS = jsonschema.Draft202012Validator(generate_schema.schema_of_lists(_job))


def key(kind: str = "ssh-ed25519", *strings: bytes) -> str:
    parts = (kind.encode(),) + (strings or (b"k" * 32,))
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return "%s %s" % (kind, base64.b64encode(blob).decode())


KEY = key()
OTHER_KEY = key("ssh-ed25519", b"o" * 32)
MACHINE_ID = "0123456789abcdef" * 2


def base(**more):
    job = {"name": "demo", "partner": {"host": "hq"}, "elements": [{"path": "/srv/a"}]}
    job.update(more)
    return job


def made(**more):
    job, problems = _job.declare(base(**more))
    assert [str(problem) for problem in problems] == []
    return job


def changed(current, **more):
    job, problems = _job.declare(dict({"name": "demo"}, **more), current)
    assert [str(problem) for problem in problems] == []
    return job


def errors(**more):
    return [str(problem) for problem in _job.declare(base(**more))[1]]


ACCOUNT = {"user": "serversync", "private_key_file": None, "password": None}
SETTINGS = {
    "direction": "to_partner",
    "conflict": "newer_wins",
    "delete": "never",
    "max_delete": "25%",
    "max_change": None,
    "include": [],
    "exclude": [],
    "preserve": None,
    "owners": "names",
    "verify": "metadata",
    "verify_every": None,
    "keep_versions": "7d",
    "versions_max": "20%",
    "bandwidth_limit": None,
    "compress": "auto",
}


ELEMENT = {"kind": "tree", "previous_path": None, "requires": [], "settings": None}


def test_the_normal_form_of_the_least_job():
    assert made() == {
        "version": 1,
        "name": "demo",
        "comment": "",
        "enabled": True,
        "scope": "system",
        "partner": {"host": "hq", "port": 22, "connection": "ssh", "host_key": []},
        "account": ACCOUNT,
        "schedule": None,
        "on_error": {"retries": 3, "delay": "5m", "backoff": 2.0, "max_delay": None},
        "notification": {"email": [], "urls": [], "events": ["conflict", "failure", "recovery"], "late_after": None},
        "settings": SETTINGS,
        "elements": [{"path": "/srv/a", "partner_path": "/srv/a", **ELEMENT}],
        "before": [],
        "after": [],
        "limits": {"parallel": 1, "timeout": None, "nice": 0},
        "accept_circular": None,
    }


def test_the_order_of_the_document():
    assert list(made(schedule={"at": "02:30"})) == [
        "version",
        "name",
        "comment",
        "enabled",
        "scope",
        "partner",
        "account",
        "schedule",
        "on_error",
        "notification",
        "settings",
        "elements",
        "before",
        "after",
        "limits",
        "accept_circular",
    ]
    assert list(made()["settings"]) == list(SETTINGS)
    assert list(made(schedule={"at": "02:30"})["schedule"]) == [
        "every",
        "at",
        "days",
        "day_of_month",
        "calendar",
        "timezone",
        "jitter",
        "catch_up",
    ]


HOST = "write a host name, an IPv4 address, an IPv6 address without brackets, or the name of a pairing"
DURATION = "is not a duration; write a number and a unit, e.g. 90s, 15m, 2h or 7d"
BY_CALENDAR = "how much time schedule.calendar leaves between two runs only systemd knows"
DAYS = "mon, tue, wed, thu, fri, sat, sun"
PUB = "write TYPE BASE64 as in /etc/ssh/ssh_host_ed25519_key.pub of the partner"
KINDS = ", ".join(_host_key.KEY_TYPES)
NAME = "is not a job name; use a-z, 0-9, '_', '.' and '-', and begin with a letter or a digit"
USER = "is not a user name; use letters, digits, '_', '.', '+' and '-', and no dash at the beginning"
OVERLAP = "elements must not overlap, remove one or name another path"
TIME = 'is not a time of day; write HH:MM between 00:00 and 23:59, e.g. "02:30"'
CALENDAR = 'is not a calendar expression; see "man systemd.time", e.g. "Mon..Fri *-*-* 02:30"'

NO_URL = "is not a URL of Apprise; write SCHEME://..., e.g. mailtos://USER:PASSWORD@example.com"
PRESERVE = "times, permissions, owner, group, links, hardlinks, acls, xattrs, sparse"
AMOUNT = "is neither a share nor a number of paths; write e.g. 25% or 100"
PERCENT = "is out of range; use 1% to 100%, or a number of paths, 0 for none"
SIZE = "is not a size; write a whole number and a unit, e.g. 500K, 20M or 1G"
BANDWIDTH = "is out of range; use 1K to 1T, or null for no limit"
ROOM = "is neither a share nor a size; write a whole number and %, M, G or T, e.g. 20% or 50G"

LONG = "has %d characters; use at most %d"

BAD = [
    # what the schema of documents has no room for
    ({"elements": [{"path": "/" + "a" * 4096}]}, "elements[0].path: " + LONG % (4097, 4096)),
    (
        {"elements": [{"path": "/a", "requires": ["/b/" + "a" * 4096]}]},
        "elements[0].requires[0]: " + LONG % (4099, 4096),
    ),
    ({"account": {"private_key_file": "/" + "a" * 4096}}, "account.private_key_file: " + LONG % (4097, 4096)),
    ({"settings": {"exclude": ["a", "a" * 4097]}}, "settings.exclude[1]: " + LONG % (4097, 4096)),
    ({"schedule": {"calendar": "daily," * 170}}, "schedule.calendar: " + LONG % (1020, 1000)),
    ({"schedule": {"every": "1h", "timezone": "A" * 101}}, "schedule.timezone: " + LONG % (101, 100)),
    (
        {"partner": {"host": "hq", "host_key": key("ssh-rsa", b"e", b"n" * 6200)}},
        "partner.host_key[0]: " + LONG % (8304, 8192),
    ),
    (
        {"partner": {"host": "fe80::1%" + "e" * 65}},
        "partner.host: 'fe80::1%%%s' has no valid interface after '%%'; %s" % ("e" * 65, HOST),
    ),
    # unknown options
    ({"scheduel": {}}, "scheduel: is not an option; did you mean schedule?"),
    ({"port": 22}, "port: is not an option; did you mean partner.port?"),
    ({"path": "/srv"}, "path: is not an option; did you mean elements[].path?"),
    ({"partner": {"host": "hq", "conection": "ssh"}}, "partner.conection: is not an option; did you mean connection?"),
    ({"account": {"passwd": "x"}}, "account.passwd: is not an option; did you mean password?"),
    # passwords, of which no error tells anything
    (
        {"account": {"password": "s3cret"}},
        "account.password: goes with partner.connection sftp only, since a paired partner takes nothing but its key; "
        "leave it out",
    ),
    *(
        ({"partner": {"host": "x", "connection": "sftp"}, "account": account}, "account" + message)
        for account, message in (
            ("s3cret", ": is text, not a dictionary; write it with the keys user, private_key_file, password"),
            (["s3cret"], ": is a list, not a dictionary; write it with the keys user, private_key_file, password"),
            ({"password": ["s3cret"]}, ".password: is a list, not text; quote it"),
            ({"password": {"s3cret": 1}}, ".password: is a dictionary, not text; quote it"),
            ({"password": True}, ".password: is a boolean, not text; quote it"),
            ({"password": 1.5}, ".password: is a number, not text; quote it"),
            ({"password": ""}, ".password: is empty; give the password, or null for a log-in by key"),
            ({"password": "s3cret\n"}, ".password: has more than one line; give the password alone"),
            ({"password": "s3cret\0"}, ".password: has more than one line; give the password alone"),
            ({"password": "s3cret\udc80"}, ".password: is not valid UTF-8; only secrets in UTF-8 can be declared"),
            ({"password": "s" * 1001}, ".password: has 1001 characters; use at most 1000"),
            (
                {"password": "s3cret", "private_key_file": "/k"},
                ".password: does not go with account.private_key_file; give one of them",
            ),
        )
    ),
    # URLs, neither
    *(
        ({"notification": notification}, "notification" + message)
        for notification, message in (
            ("json://s3cret", ": is text, not a dictionary; write it with the keys email, urls, events, late_after"),
            ({"url": ["json://s3cret"]}, ".url: is not an option; did you mean urls?"),
            ({"urls": {"s3cret": 1}}, ".urls: is a dictionary, not a list; begin each entry with a dash"),
            ({"urls": True}, ".urls: is a boolean, not a list; begin each entry with a dash"),
            ({"urls": [["s3cret"]]}, ".urls[0]: is a list, not text; quote it"),
            ({"urls": ["json://a", None]}, ".urls[1]: is empty; write a value or remove the entry"),
            *(
                ({"urls": ["json://a", url]}, ".urls[1]: " + said)
                for url, said in (
                    *((one, NO_URL) for one in ("", "s3cret", "s3cret:", "s3cret://", "://s3cret", "json:///s3cret")),
                    ("json://s3cret\nb", "contains the control character U+000A; remove it"),
                    ("json://s3cret\0", "contains the control character U+0000; remove it"),
                    ("json://s3cret b", "contains a blank; write %20 for it, and each URL as an entry of its own"),
                    (
                        "json://s3cret, json://b",
                        "contains a blank; write %20 for it, and each URL as an entry of its own",
                    ),
                    ("json://s3cret\udc80", "is not valid UTF-8; only secrets in UTF-8 can be declared"),
                    ("json://" + "s" * 4096, "has 4103 characters; use at most 4096"),
                    (
                        "Syslog://s3cret",
                        "is of syslog://, which is shown on this server alone; name a service in the network",
                    ),
                    (
                        "dbus://s3cret",
                        "is of dbus://, which is shown on this server alone; name a service in the network",
                    ),
                )
            ),
            (
                {"urls": ["json://s3cret", "json://b", " json://s3cret\n"]},
                ".urls: has the same URL as entry 0 and as entry 2; leave one of them out",
            ),
            (
                {"urls": [_job.KEPT, "json://s3cret"]},
                ".urls: has new URLs beside those that are kept; give all of them, or 'kept as a credential' alone",
            ),
        )
    ),
    (
        {"elements": [{"path": "/a", "exclude": []}]},
        "elements[0].exclude: is not an option; did you mean settings.exclude?",
    ),
    (
        {"copy_from": "A"},
        "copy_from: 'A' " + NAME,
    ),
    ({"previous_name": "a b"}, "previous_name: 'a b' " + NAME),
    ({"copy_from": ["a"]}, "copy_from: ['a'] is a list, not text; quote it"),
    # wrong types
    (
        {"partner": "hq"},
        "partner: 'hq' is text, not a dictionary; write it with the keys host, port, connection, host_key",
    ),
    ({"partner": {"host": ["hq"]}}, "partner.host: ['hq'] is a list, not text; quote it"),
    ({"partner": {"host": True}}, "partner.host: True is a boolean, not text; quote it"),
    ({"comment": 1.5}, "comment: 1.5 is a number, not text; quote it"),
    (
        {"elements": {"path": "/a"}},
        "elements: {'path': '/a'} is a dictionary, not a list; begin each entry with a dash",
    ),
    (
        {"elements": ["/a"]},
        "elements[0]: '/a' is text, not a dictionary; write it with the keys path, partner_path, kind, previous_path, "
        "requires, settings",
    ),
    ({"elements": [None]}, "elements[0]: is empty; write a value or remove the entry"),
    ({"enabled": "maybe"}, "enabled: 'maybe' is not a boolean; use true or false"),
    ({"enabled": 2}, "enabled: 2 is not a boolean; use true or false"),
    ({"on_error": {"retries": "three"}}, "on_error.retries: 'three' is not a whole number; use 0 to 100"),
    ({"on_error": {"retries": 1.5}}, "on_error.retries: 1.5 is not a whole number; use 0 to 100"),
    ({"on_error": {"retries": True}}, "on_error.retries: True is not a whole number; use 0 to 100"),
    (
        {"settings": {"exclude": {"a": 1}}},
        "settings.exclude: {'a': 1} is a dictionary, not a list; begin each entry with a dash",
    ),
    # name
    ({"name": None}, "name: is missing; give the job a name"),
    ({"name": "a/b"}, "name: 'a/b' " + NAME),
    ({"name": "A"}, "name: 'A' " + NAME),
    ({"name": ".a"}, "name: '.a' " + NAME),
    ({"name": "a\n"}, "name: 'a\\n' " + NAME),
    ({"name": ""}, "name: '' " + NAME),
    ({"name": "a" * 65}, "name: '%s' has 65 characters; use at most 64" % ("a" * 65)),
    # comment
    ({"comment": "two\nlines"}, "comment: 'two\\nlines' contains the control character U+000A; remove it"),
    ({"comment": "x" * 1001}, "comment: has 1001 characters; use at most 1000"),
    ({"comment": "\udc80"}, "comment: '\\udc80' is not valid UTF-8; only names in UTF-8 can be declared"),
    # choices
    ({"scope": "root"}, "scope: 'root' is not one of system, user"),
    ({"state": "gone"}, "state: 'gone' is not one of present, absent"),
    ({"settings": {"direction": "up"}}, "settings.direction: 'up' is not one of to_partner, from_partner, both"),
    (
        {"settings": {"direction": "to_parter"}},
        "settings.direction: 'to_parter' is not one of to_partner, from_partner, both; did you mean to_partner?",
    ),
    ({"settings": {"delete": "all"}}, "settings.delete: 'all' is not one of never, synced, extraneous"),
    ({"settings": {"delete": False}}, "settings.delete: False is not one of never, synced, extraneous"),
    (
        {"settings": {"conflict": "newer-wins"}},
        "settings.conflict: 'newer-wins' is not one of this_server_wins, partner_wins, newer_wins, no_winner, "
        "keep_both; did you mean newer_wins?",
    ),
    ({"settings": {"verify": "contents"}}, "settings.verify: 'contents' is not one of metadata, checksum"),
    ({"settings": {"owners": "ids"}}, "settings.owners: 'ids' is not one of names, numbers"),
    ({"settings": {"compress": True}}, "settings.compress: True is not one of auto, always, never"),
    ({"settings": {"compress": "yes"}}, "settings.compress: 'yes' is not one of auto, always, never"),
    ({"settings": {"preserve": ["times", "size"]}}, "settings.preserve[1]: 'size' is not one of " + PRESERVE),
    (
        {"settings": {"preserve": ["hardlink"]}},
        "settings.preserve[0]: 'hardlink' is not one of %s; did you mean hardlinks?" % PRESERVE,
    ),
    ({"parallel": 2}, "parallel: is not an option; did you mean limits.parallel?"),
    ({"settings": {"paralel": 2}}, "settings.paralel: is not an option; use one of " + ", ".join(SETTINGS)),
    ({"settings": {"max_deletes": 2}}, "settings.max_deletes: is not an option; did you mean max_delete?"),
    (
        {"notification": {"events": ["failure", "start"]}},
        "notification.events[1]: 'start' is not one of failure, conflict, recovery, late, success, always",
    ),
    # partner and account
    ({"partner": None}, "partner.host: is missing; name the partner server"),
    ({"partner": {}}, "partner.host: is missing; name the partner server"),
    ({"partner": {"host": "-oProxyCommand=x"}}, "partner.host: '-oProxyCommand=x' is not a host; " + HOST),
    ({"partner": {"host": "h q"}}, "partner.host: 'h q' is not a host; " + HOST),
    ({"partner": {"host": "hq\n"}}, "partner.host: 'hq\\n' is not a host; " + HOST),
    ({"partner": {"host": ""}}, "partner.host: '' is not a host; " + HOST),
    ({"partner": {"host": "[::1]"}}, "partner.host: '[::1]' is not a host; %s, and the port in partner.port" % HOST),
    ({"partner": {"host": "hq:22"}}, "partner.host: 'hq:22' is not a host; %s, and the port in partner.port" % HOST),
    ({"partner": {"host": "fe80::1%e 0"}}, "partner.host: 'fe80::1%%e 0' has no valid interface after '%%'; %s" % HOST),
    ({"partner": {"host": "300.1.1.1"}}, "partner.host: '300.1.1.1' is not an IPv4 address; " + HOST),
    (
        {"partner": {"host": "root@hq"}},
        "partner.host: '...@hq' contains '@'; write the host here and the user in account.user",
    ),
    ({"partner": {"host": "hq", "port": 0}}, "partner.port: 0 is out of range; use 1 to 65535"),
    ({"partner": {"host": "hq", "port": 65536}}, "partner.port: 65536 is out of range; use 1 to 65535"),
    ({"account": {"user": "-l"}}, "account.user: '-l' " + USER),
    ({"account": {"user": "a b"}}, "account.user: 'a b' " + USER),
    ({"account": {"user": "a@b"}}, "account.user: 'a@b' " + USER),
    (
        {"account": {"private_key_file": "~/.ssh/id"}},
        "account.private_key_file: '~/.ssh/id' is not absolute; write the whole path from /",
    ),
    (
        {"account": {"private_key_file": "-----BEGIN OPENSSH PRIVATE KEY-----"}},
        "account.private_key_file: is a private key itself; write the path of the file that holds it",
    ),
    # host keys
    (
        {"partner": {"host": "hq", "host_key": "hq " + KEY}},
        "partner.host_key[0]: has 'hq' before the key type; leave it out",
    ),
    (
        {"partner": {"host": "hq", "host_key": "ssh-dss AAAA"}},
        "partner.host_key[0]: 'ssh-dss' is not a key type; use one of " + KINDS,
    ),
    (
        {"partner": {"host": "hq", "host_key": ["ssh-ed25519"]}},
        "partner.host_key[0]: has no key after ssh-ed25519; " + PUB,
    ),
    ({"partner": {"host": "hq", "host_key": [" "]}}, "partner.host_key[0]: is empty; " + PUB),
    (
        {"partner": {"host": "hq", "host_key": ["ssh-ed25519 A*"]}},
        "partner.host_key[0]: 'A*' is cut off or damaged; " + PUB,
    ),
    (
        {"partner": {"host": "hq", "host_key": ["ssh-ed25519 AAAA"]}},
        "partner.host_key[0]: 'AAAA' is cut off or damaged; " + PUB,
    ),
    (
        {"partner": {"host": "hq", "host_key": [KEY, KEY.replace("ssh-ed25519", "ssh-rsa", 1)]}},
        "partner.host_key[1]: says ssh-rsa, but the key itself is of type 'ssh-ed25519'; " + PUB,
    ),
    (
        {"partner": {"host": "hq", "host_key": ["-----BEGIN OPENSSH PRIVATE KEY-----\nsecret"]}},
        "partner.host_key[0]: is a private key; give the public key and take the private one as known to others",
    ),
    # schedule
    ({"schedule": {}}, "schedule: has none of every, at, calendar; give one of them, or schedule: null for none"),
    ({"schedule": {"every": "1h", "at": "02:30"}}, "schedule: has every and at; give one of every, at, calendar"),
    (
        {"schedule": {"at": "02:30", "calendar": "daily"}},
        "schedule: has at and calendar; give one of every, at, calendar",
    ),
    ({"schedule": {"at": 750}}, 'schedule.at[0]: 750 is a number, not a time of day; quote times, e.g. "12:30"'),
    (
        {"schedule": {"at": ["02:30", 750]}},
        'schedule.at[1]: 750 is a number, not a time of day; quote times, e.g. "12:30"',
    ),
    ({"schedule": {"at": "25:00"}}, "schedule.at[0]: '25:00' " + TIME),
    ({"schedule": {"at": "24:00"}}, "schedule.at[0]: '24:00' " + TIME),
    ({"schedule": {"at": "12:60"}}, "schedule.at[0]: '12:60' " + TIME),
    ({"schedule": {"at": "noon"}}, "schedule.at[0]: 'noon' " + TIME),
    ({"schedule": {"at": []}}, "schedule.at: is empty; give at least one entry"),
    ({"schedule": {"at": "02:30", "days": ["mon", "funday"]}}, "schedule.days[1]: 'funday' is not a day; use " + DAYS),
    ({"schedule": {"every": "1h", "days": ["mon"]}}, "schedule.days: goes with at only; give at, or leave days out"),
    (
        {"schedule": {"calendar": "02:30", "day_of_month": 1}},
        "schedule.day_of_month: goes with at only; give at, or leave day_of_month out",
    ),
    (
        {"schedule": {"at": "02:30", "days": "mon", "day_of_month": 1}},
        "schedule: has days and day_of_month; give one of them",
    ),
    (
        {"schedule": {"at": "02:30", "day_of_month": [1, 32]}},
        "schedule.day_of_month[1]: 32 is out of range; use 1 to 31",
    ),
    # all days are days, too
    (
        {"schedule": {"at": "02:30", "days": list(_schedule.DAYS), "day_of_month": list(range(1, 32))}},
        "schedule: has days and day_of_month; give one of them",
    ),
    (
        {"schedule": {"every": "1h", "days": list(_schedule.DAYS)}},
        "schedule.days: goes with at only; give at, or leave days out",
    ),
    ({"schedule": {"at": "02:30", "day_of_month": 0}}, "schedule.day_of_month[0]: 0 is out of range; use 1 to 31"),
    (
        {"schedule": {"every": "7m"}},
        "schedule.every: '7m' divides neither an hour nor a day; use 6m, the nearest that does, or at",
    ),
    (
        {"schedule": {"every": "7h"}},
        "schedule.every: '7h' divides neither an hour nor a day; use 6h, the nearest that does, or at",
    ),
    (
        {"schedule": {"every": "61s"}},
        "schedule.every: '61s' divides neither an hour nor a day; use 1m, the nearest that does, or at",
    ),
    ({"schedule": {"every": "30s"}}, "schedule.every: '30s' is out of range; use 1m to 1d"),
    ({"schedule": {"every": "2d"}}, "schedule.every: '2d' is out of range; use 1m to 1d"),
    ({"schedule": {"every": 60}}, "schedule.every: 60 has no unit; write e.g. 90s, 15m, 2h or 7d"),
    ({"schedule": {"calendar": "%h"}}, "schedule.calendar: '%h' " + CALENDAR),
    ({"schedule": {"calendar": ""}}, "schedule.calendar: '' " + CALENDAR),
    ({"schedule": {"calendar": "-x"}}, "schedule.calendar: '-x' " + CALENDAR),
    (
        {"schedule": {"at": "02:30", "timezone": "a b"}},
        "schedule.timezone: 'a b' is not a time zone; write its name, e.g. Europe/Berlin or UTC",
    ),
    (
        {"schedule": {"at": "02:30", "timezone": "../etc/x"}},
        "schedule.timezone: '../etc/x' is not a time zone; write its name, e.g. Europe/Berlin or UTC",
    ),
    (
        {"schedule": {"calendar": "02:30 UTC", "timezone": "CET"}},
        "schedule.timezone: 'CET' is not 'UTC' at the end of schedule.calendar; name the time zone in one of them",
    ),
    (
        {"schedule": {"every": "5m", "jitter": "5m"}},
        "schedule.jitter: 5m is not shorter than the period 5m; use less, or null for 30s",
    ),
    ({"schedule": {"every": "5m", "jitter": "2d"}}, "schedule.jitter: '2d' is out of range; use 0s to 1d"),
    # on_error, notification, settings
    ({"on_error": {"retries": -1}}, "on_error.retries: -1 is out of range; use 0 to 100"),
    ({"on_error": {"delay": "soon"}}, "on_error.delay: 'soon' " + DURATION),
    ({"on_error": {"delay": "5"}}, "on_error.delay: '5' " + DURATION),
    ({"on_error": {"delay": "1w"}}, "on_error.delay: '1w' " + DURATION),
    ({"on_error": {"backoff": 0.5}}, "on_error.backoff: 0.5 is out of range; use 1 to 10"),
    ({"on_error": {"backoff": "10.1"}}, "on_error.backoff: '10.1' is out of range; use 1 to 10"),
    ({"on_error": {"backoff": float("nan")}}, "on_error.backoff: nan is out of range; use 1 to 10"),
    ({"on_error": {"backoff": "twice"}}, "on_error.backoff: 'twice' is not a number; use 1 to 10, e.g. 1.5"),
    ({"on_error": {"backoff": True}}, "on_error.backoff: True is not a number; use 1 to 10, e.g. 1.5"),
    ({"on_error": {"max_delay": "2d"}}, "on_error.max_delay: '2d' is out of range; use 0s to 1d"),
    (
        {"on_error": {"delay": "10m", "max_delay": "5m"}},
        "on_error.max_delay: 5m is shorter than on_error.delay 10m; use that or more, or null",
    ),
    *(
        (
            {"notification": {"events": ["late"]}, **more},
            "notification.late_after: is missing; %s, so give it, e.g. 2d, or leave late out of notification.events"
            % why,
        )
        for more, why in (
            ({}, "without a schedule nothing says when a run is due"),
            ({"schedule": {"calendar": "daily"}}, BY_CALENDAR),
        )
    ),
    (
        {"schedule": {"at": "02:30"}, "notification": {"late_after": "23h"}},
        "notification.late_after: 23h is shorter than the 1d that the schedule leaves between two runs; use that or "
        "more, or null for 2d",
    ),
    (
        {"schedule": {"at": "02:30", "days": ["mon", "thu"]}, "notification": {"late_after": "3d", "events": "late"}},
        "notification.late_after: 3d is shorter than the 4d that the schedule leaves between two runs; use that or "
        "more, or null for 8d",
    ),
    ({"notification": {"late_after": "59s"}}, "notification.late_after: '59s' is out of range; use 1m to 3650d"),
    ({"notification": {"late_after": 0}}, "notification.late_after: '0' is out of range; use 1m to 3650d"),
    ({"notification": {"late_after": "3651d"}}, "notification.late_after: '3651d' is out of range; use 1m to 3650d"),
    ({"notification": {"late_after": 7}}, "notification.late_after: 7 has no unit; write e.g. 90s, 15m, 2h or 7d"),
    ({"notification": {"late_after": "late"}}, "notification.late_after: 'late' " + DURATION),
    ({"notification": {"late_afer": "2d"}}, "notification.late_afer: is not an option; did you mean late_after?"),
    # only what is wrong with the schedule itself
    (
        {"schedule": {"every": "7m"}, "notification": {"events": ["late"]}},
        "schedule.every: '7m' divides neither an hour nor a day; use 6m, the nearest that does, or at",
    ),
    (
        {"schedule": {"timezone": "UTC"}, "notification": {"events": ["late"]}},
        "schedule: has none of every, at, calendar; give one of them, or schedule: null for none",
    ),
    (
        {"limits": {"timeout": "5\u017f"}},
        "limits.timeout: '5\u017f' is not a duration; write a number and a unit, e.g. 90s, 15m, 2h or 7d",
    ),
    (
        {"settings": {"bandwidth_limit": "20\u212a"}},
        "settings.bandwidth_limit: '20\u212a' is not a size; write a whole number and a unit, e.g. 500K, 20M or 1G",
    ),
    (
        {"partner": {"host": "user:plant-ed@hq"}},
        "partner.host: '...@hq' contains '@'; write the host here and the user in account.user",
    ),
    (
        {"schedule": {"calendar": "*-*-* 02:30 Europe/../Europe/Berlin"}},
        "schedule.calendar: 'Europe/../Europe/Berlin' at its end is not a time zone; "
        "write its name, e.g. Europe/Berlin or UTC",
    ),
    (
        {"notification": {"email": "ops"}},
        "notification.email[0]: 'ops' is not an e-mail address; write it as name@example.com",
    ),
    (
        {"notification": {"email": ["a@b", "a@b\nBcc: c@d"]}},
        "notification.email[1]: 'a@b\\nBcc: c@d' contains the control character U+000A; remove it",
    ),
    (
        {"notification": {"email": ["-f@b"]}},
        "notification.email[0]: '-f@b' is not an e-mail address; write it as name@example.com",
    ),
    (
        {"settings": {"exclude": ["!keep"]}},
        "settings.exclude: begins with '!keep', an exception from nothing; "
        "put it after the pattern that it is an exception from",
    ),
    ({"settings": {"exclude": ["a", ""]}}, "settings.exclude[1]: is empty; write a pattern or remove the entry"),
    (
        {"settings": {"exclude": ["#x"]}},
        "settings.exclude[0]: '#x' is a comment; remove it, or write \\# for a name that begins with '#'",
    ),
    (
        {"settings": {"exclude": ["a\0"]}},
        "settings.exclude[0]: 'a\\x00' contains the control character U+0000; remove it",
    ),
    (
        {"settings": {"include": ["!keep", "keep"]}},
        "settings.include: begins with '!keep', an exception from nothing; "
        "put it after the pattern that it is an exception from",
    ),
    ({"settings": {"include": [" "]}}, "settings.include[0]: is empty; write a pattern or remove the entry"),
    (
        {"settings": {"include": "#x"}},
        "settings.include[0]: '#x' is a comment; remove it, or write \\# for a name that begins with '#'",
    ),
    (
        {"settings": {"include": ["/"]}},
        "settings.include[0]: '/' matches no file; write * for all, or remove the entry",
    ),
    (
        {"settings": {"exclude": ["*", " // "]}},
        "settings.exclude[1]: ' // ' matches no file; write * for all, or remove the entry",
    ),
    *(
        (
            {"settings": {"exclude": ["a", pattern]}},
            "settings.exclude[1]: %r matches no file; write * for all, or remove the entry" % pattern,
        )
        for pattern in ("!", "!/", "! ")
    ),
    *(
        (
            {"settings": {"exclude": [pattern]}},
            "settings.exclude[0]: %r ends with a backslash that makes nothing literal; remove or double it" % pattern,
        )
        for pattern in ("\\", "a\\", "a\\\\\\")
    ),
    # shares, counts and sizes
    *(
        ({"settings": {name: value}}, "settings.%s: %s" % (name, message))
        for name in ("max_delete", "max_change")
        for value, message in (
            ("many", "'many' " + AMOUNT),
            ("", "'' " + AMOUNT),
            (-1, "'-1' " + AMOUNT),
            ("0.5", "'0.5' " + AMOUNT),
            ("12.5%", "'12.5%' " + AMOUNT),
            ("25%%", "'25%%' " + AMOUNT),
            ("10 paths", "'10 paths' " + AMOUNT),
            ("20M", "'20M' " + AMOUNT),
            ("0%", "'0%' " + PERCENT),
            ("101%", "'101%' " + PERCENT),
            (10**9, "'1000000000' is out of range; use 0 to 999999999, or a share such as 25%"),
            (0.5, "0.5 is not a whole number; write a share, e.g. 25%"),
            (float("nan"), "nan is not a whole number; write a share, e.g. 25%"),
            (False, "False is a boolean; write a share, e.g. 25%"),
            (["25%"], "['25%'] is a list, not text; quote it"),
        )
    ),
    *(
        ({"settings": {"bandwidth_limit": value}}, "settings.bandwidth_limit: " + message)
        for value, message in (
            (20, "20 has no unit; write e.g. 500K, 20M or 1G"),
            (0, "0 has no unit; write e.g. 500K, 20M or 1G"),
            ("20", "'20' " + SIZE),
            ("20MB", "'20MB' " + SIZE),
            ("20M/s", "'20M/s' " + SIZE),
            ("1.5G", "'1.5G' " + SIZE),
            ("-1M", "'-1M' " + SIZE),
            ("none", "'none' " + SIZE),
            ("0M", "'0M' " + BANDWIDTH),
            ("2T", "'2T' " + BANDWIDTH),
            (True, "True is a boolean, not text; quote it"),
        )
    ),
    *(
        ({"settings": {"versions_max": value}}, "settings.versions_max: " + message)
        for value, message in (
            ("all", "'all' " + ROOM),
            (20, "'20' " + ROOM),
            ("20GB", "'20GB' " + ROOM),
            (0.2, "0.2 is not a whole number; write a share, e.g. 25%"),
            (True, "True is a boolean; write a share, e.g. 25%"),
            ("0%", "'0%' is out of range; use 1% to 100%, or a size such as 50G"),
            ("1023K", "'1023K' is out of range; use 1M to 1024T, or a share such as 20%"),
            ("1025T", "'1025T' is out of range; use 1M to 1024T, or a share such as 20%"),
        )
    ),
    ({"settings": {"keep_versions": "forever"}}, "settings.keep_versions: 'forever' " + DURATION),
    ({"settings": {"keep_versions": "3651d"}}, "settings.keep_versions: '3651d' is out of range; use 0s to 3650d"),
    ({"settings": {"keep_versions": 7}}, "settings.keep_versions: 7 has no unit; write e.g. 90s, 15m, 2h or 7d"),
    ({"settings": {"verify_every": 0}}, "settings.verify_every: 0 is out of range; use 1 to 10000"),
    ({"settings": {"verify_every": 10001}}, "settings.verify_every: 10001 is out of range; use 1 to 10000"),
    ({"settings": {"verify_every": "7d"}}, "settings.verify_every: '7d' is not a whole number; use 1 to 10000"),
    ({"limits": {"parallel": 0}}, "limits.parallel: 0 is out of range; use 1 to 8"),
    ({"limits": {"parallel": 9}}, "limits.parallel: 9 is out of range; use 1 to 8"),
    ({"limits": {"parallel": "all"}}, "limits.parallel: 'all' is not a whole number; use 1 to 8"),
    ({"accept_circular": True}, "accept_circular: True is a boolean, not text; quote it"),
    ({"accept_circular": " . "}, "accept_circular: is empty; write why the circle is meant, or null where none is"),
    ({"accept_circular": "a\nb"}, "accept_circular: 'a\\nb' contains the control character U+000A; remove it"),
    ({"accept_circular": "a" * 1001}, "accept_circular: has 1001 characters; use at most 1000"),
    ({"limits": 2}, "limits: 2 is a number, not a dictionary; write it with the keys parallel, timeout, nice"),
    ({"limits": {"cpus": 10}}, "limits.cpus: is not an option; use one of parallel, timeout, nice"),
    # settings that exclude each other
    (
        {"settings": {"direction": "both", "delete": "extraneous"}},
        "settings.delete: 'extraneous' needs a source, which direction both does not have; use synced or never",
    ),
    (
        {"settings": {"verify": "checksum", "verify_every": 10}},
        "settings.verify_every: goes with verify metadata only, because verify checksum reads all contents in every "
        "run; leave it out",
    ),
    *(
        (
            {"scope": "user", "settings": {"direction": direction, "preserve": ["times", "owner"]}},
            "settings.preserve: 'owner' cannot be kept where the target is this server and the scope is user; "
            "leave it out",
        )
        for direction in ("from_partner", "both")
    ),
    # the path before
    (
        {"elements": [{"path": "/a", "previous_path": "b"}]},
        "elements[0].previous_path: 'b' is not absolute; write the whole path from /",
    ),
    (
        {"elements": [{"path": "/a", "previous_path": "/sys/b"}]},
        "elements[0].previous_path: '/sys/b' is under /sys, which holds no files to keep; name another path",
    ),
    (
        {"elements": [{"path": "/a", "previous_path": "/a/"}]},
        "elements[0].previous_path: '/a' is the same path as elements[0].path; leave it out",
    ),
    (
        {"elements": [{"path": "/a", "previous_path": "/b"}, {"path": "/b"}]},
        "elements[0].previous_path: '/b' is the same path as elements[1].path; "
        "an archive is of one element, name another path",
    ),
    (
        {"elements": [{"path": "/a", "previous_path": "/c"}, {"path": "/b", "previous_path": "/c"}]},
        "elements[1].previous_path: '/c' is the same path as elements[0].previous_path; "
        "an archive is of one element, name another path",
    ),
    # coupled elements
    (
        {"elements": [{"path": "/a"}, {"path": "/b", "requires": ["/a", "/c"]}]},
        "elements[1].requires: '/c' is not the path of another element of this job; use /a",
    ),
    (
        {"elements": [{"path": "/a"}, {"path": "/b", "partner_path": "/c", "requires": "/c"}, {"path": "/d"}]},
        "elements[1].requires: '/c' is not the path of another element of this job; use /a, /d",
    ),
    (
        {"elements": [{"path": "/a", "requires": ["/b"]}]},
        "elements[0].requires: '/b' is not the path of another element of this job; leave it out",
    ),
    (
        {"elements": [{"path": "/a", "requires": ["/a/"]}]},
        "elements[0].requires: '/a' is the element itself; leave it out",
    ),
    (
        {"elements": [{"path": "/a"}, {"path": "/b", "requires": ["a"]}]},
        "elements[1].requires[0]: 'a' is not absolute; write the whole path from /",
    ),
    (
        {"elements": [{"path": "/a", "requires": {"path": "/b"}}]},
        "elements[0].requires: {'path': '/b'} is a dictionary, not a list; begin each entry with a dash",
    ),
    (
        {"elements": [{"path": "/a", "requires": ["/b"]}, {"path": "/b", "requires": ["/a"]}]},
        "elements[0].requires: '/b' closes a circle (/a requires /b requires /a); leave one of them out",
    ),
    (
        {
            "elements": [
                {"path": "/a", "requires": ["/b"]},
                {"path": "/b", "requires": ["/c", "/d"]},
                {"path": "/c"},
                {"path": "/d", "requires": ["/b"]},
            ]
        },
        "elements[1].requires: '/d' closes a circle (/b requires /d requires /b); leave one of them out",
    ),
    # limits
    ({"limits": {"timeout": "forever"}}, "limits.timeout: 'forever' " + DURATION),
    ({"limits": {"timeout": 7200}}, "limits.timeout: 7200 has no unit; write e.g. 90s, 15m, 2h or 7d"),
    ({"limits": {"timeout": "59s"}}, "limits.timeout: '59s' is out of range; use 1m to 30d"),
    ({"limits": {"timeout": "31d"}}, "limits.timeout: '31d' is out of range; use 1m to 30d"),
    ({"limits": {"timeout": 0}}, "limits.timeout: '0' is out of range; use 1m to 30d"),
    ({"limits": {"nice": -5}}, "limits.nice: -5 is out of range; use 0 to 19"),
    ({"limits": {"nice": 20}}, "limits.nice: 20 is out of range; use 0 to 19"),
    ({"limits": {"nice": "low"}}, "limits.nice: 'low' is not a whole number; use 0 to 19"),
    ({"limits": {"niceness": 5}}, "limits.niceness: is not an option; did you mean nice?"),
    ({"timeout": "2h"}, "timeout: is not an option; did you mean limits.timeout?"),
    # units around a run
    *(
        ({name: given}, "%s%s" % (name, message))
        for name in ("before", "after")
        for given, message in (
            ("dump-db.service", ": 'dump-db.service' is text, not a list; begin each entry with a dash"),
            (
                ["dump-db.service"],
                "[0]: 'dump-db.service' is text, not a dictionary; write it with the keys unit",
            ),
            ([{}], "[0].unit: is missing; name a service of systemd, e.g. dump-db.service"),
            (
                [{"unit": "a.service", "user": "root"}],
                "[0].user: is not an option; did you mean account.user?",
            ),
            (
                [{"unit": "dump-db"}],
                "[0].unit: 'dump-db' is not a service; write its whole name, e.g. dump-db.service",
            ),
            (
                [{"unit": "srv.mount"}],
                "[0].unit: 'srv.mount' is not a service; write its whole name, e.g. dump-db.service",
            ),
            (
                [{"unit": "a.service"}, {"unit": "dump@.service"}],
                "[1].unit: 'dump@.service' is a template; name an instance of it, e.g. dump-db@main.service",
            ),
            (
                [{"unit": "serversync@demo.service"}],
                "[0].unit: 'serversync@demo.service' is the unit of a job, which does not fail where a run does; "
                "put the elements into one job, where elements[].requires couples them",
            ),
            *(
                (
                    [{"unit": wrong}],
                    "[0].unit: %r is not the name of a unit; write it as systemctl list-units does, "
                    "e.g. dump-db.service" % wrong,
                )
                for wrong in (
                    "a b.service",
                    "--force.service",
                    "/etc/x.service",
                    "%h.service",
                    "a;b.service",
                    "a\n.service",
                    "\u00e4.service",
                    ".service",
                )
            ),
            (
                [{"unit": "a.service"}, {"unit": "a.service"}],
                "[1].unit: 'a.service' is %s[0].unit, too; leave one of them out" % name,
            ),
        )
    ),
    # logs
    (
        {"elements": [{"path": "/a", "kind": "file"}]},
        "elements[0].kind: 'file' is not one of tree, log",
    ),
    (
        {"elements": [{"path": "/a"}, {"path": "/b", "kind": "log"}], "settings": {"direction": "both"}},
        "elements[1].kind: 'log' needs a source, which direction both does not have; give it to_partner or "
        "from_partner in elements[1].settings.direction",
    ),
    (
        {"elements": [{"path": "/a", "kind": "log", "settings": {"direction": "both"}}]},
        "elements[0].kind: 'log' needs a source, which direction both does not have; give it to_partner or "
        "from_partner in elements[0].settings.direction",
    ),
    # an element's own settings
    *(
        ({"elements": [{"path": "/a"}, {"path": "/b", "settings": own}], **more}, "elements[1].settings" + message)
        for own, more, message in (
            ("both", {}, ": 'both' is text, not a dictionary; write it with the keys %s" % ", ".join(SETTINGS)),
            ({"direktion": "both"}, {}, ".direktion: is not an option; did you mean direction?"),
            ({"path": "/c"}, {}, ".path: is not an option; did you mean elements[].path?"),
            ({"retries": 1}, {}, ".retries: is not an option; did you mean on_error.retries?"),
            ({"direction": "back"}, {}, ".direction: 'back' is not one of to_partner, from_partner, both"),
            (
                {"exclude": ["!a"]},
                {},
                ".exclude: begins with '!a', an exception from nothing; "
                "put it after the pattern that it is an exception from",
            ),
            ({"verify_every": 0}, {}, ".verify_every: 0 is out of range; use 1 to 10000"),
            (
                {"direction": "both", "delete": "extraneous"},
                {},
                ".delete: 'extraneous' needs a source, which direction both does not have; use synced or never",
            ),
            (
                {"delete": "extraneous"},
                {"settings": {"direction": "both"}},
                ".delete: 'extraneous' needs a source, which direction both, the job's, does not have; "
                "use synced or never",
            ),
            (
                {"direction": "both"},
                {"settings": {"delete": "extraneous"}},
                ".delete: 'extraneous', the job's, needs a source, which direction both does not have; "
                "give synced or never here",
            ),
            (
                {"verify": "checksum", "verify_every": 5},
                {},
                ".verify_every: goes with verify metadata only, because verify checksum reads all contents in every "
                "run; leave it out",
            ),
            (
                {"verify_every": 5},
                {"settings": {"verify": "checksum"}},
                ".verify_every: goes with verify metadata only, because verify checksum, the job's, reads all contents "
                "in every run; leave it out",
            ),
            (
                {"direction": "from_partner"},
                {"settings": {"preserve": ["owner"]}, "scope": "user"},
                ".preserve: 'owner', the job's, cannot be kept where the target is this server and the scope is user; "
                "give a list without it here",
            ),
            (
                {"preserve": ["owner"]},
                {"settings": {"direction": "from_partner"}, "scope": "user"},
                ".preserve: 'owner' cannot be kept where the target is this server and the scope is user; leave it out",
            ),
            (
                {"preserve": ["times", "acls"]},
                {"partner": {"host": "x", "connection": "sftp"}},
                ".preserve: 'acls' cannot be kept with partner.connection sftp; leave it out",
            ),
            (
                {"compress": "always"},
                {"partner": {"host": "x", "connection": "sftp"}},
                ".compress: is one for all elements with partner.connection sftp, which has one connection for them; "
                "give it in settings.compress",
            ),
        )
    ),
    (
        {"elements": [{"path": "/a", "direction": "both"}]},
        "elements[0].direction: is not an option; did you mean settings.direction?",
    ),
    *(
        ({"elements": [{"path": "/a", "kind": "log", "settings": own}]}, "elements[0].settings" + message)
        for own, message in (
            (
                {"direction": "from_partner", "delete": "synced"},
                ".delete: has no use with kind log, whose lines are only ever appended; leave it out",
            ),
            (
                {"preserve": ["times", "owner"]},
                ".preserve: 'times' cannot be kept with kind log; use permissions, owner, group",
            ),
        )
    ),
    # elements
    ({"elements": None}, "elements: is missing; give at least one element with its path"),
    ({"elements": []}, "elements: is empty; give at least one entry"),
    ({"elements": [{"path": "/a"}, {}]}, "elements[1].path: is missing; write the whole path from /"),
    (
        {"elements": [{"path": "/a"}, {"path": "srv/x"}]},
        "elements[1].path: 'srv/x' is not absolute; write the whole path from /",
    ),
    ({"elements": [{"path": ""}]}, "elements[0].path: '' is not absolute; write the whole path from /"),
    ({"elements": [{"path": "/a/../b"}]}, "elements[0].path: '/a/../b' contains '..'; write the path that it leads to"),
    (
        {"elements": [{"path": "//"}]},
        "elements[0].path: '/' is the whole file system; name a directory or a file in it",
    ),
    ({"elements": [{"path": "/a\tb"}]}, "elements[0].path: '/a\\tb' contains the control character U+0009; remove it"),
    (
        {"elements": [{"path": "/a/.serversync/b"}]},
        "elements[0].path: '/a/.serversync/b' is inside '.serversync', "
        "where the runner keeps its own files; name another path",
    ),
    (
        {"elements": [{"path": "/proc"}]},
        "elements[0].path: '/proc' is under /proc, which holds no files to keep; name another path",
    ),
    (
        {"elements": [{"path": "/a", "partner_path": "/run/x"}]},
        "elements[0].partner_path: '/run/x' is under /run, which holds no files to keep; name another path",
    ),
    (
        {"elements": [{"path": "/tmp/x", "partner_path": "/x"}]},
        "elements[0].path: '/tmp/x' is under /tmp, of which the job's service has its own; name another path",
    ),
    (
        {"elements": [{"path": "/a"}, {"path": "/a/", "partner_path": "/b"}]},
        "elements[1].path: '/a' is the same path as elements[0].path; " + OVERLAP,
    ),
    (
        {"elements": [{"path": "/a"}, {"path": "/a/b", "partner_path": "/c"}]},
        "elements[1].path: '/a/b' is inside elements[0].path '/a'; " + OVERLAP,
    ),
    (
        {"elements": [{"path": "/a/b"}, {"path": "/a", "partner_path": "/c"}]},
        "elements[1].path: '/a' is around elements[0].path '/a/b'; " + OVERLAP,
    ),
    (
        {"elements": [{"path": "/a"}, {"path": "/b", "partner_path": "/a/b"}]},
        "elements[1].partner_path: '/a/b' is inside elements[0].partner_path '/a'; " + OVERLAP,
    ),
    # rsync's daemon expands what a client names
    *(
        (
            {"elements": [{"path": "/b", "partner_path": "/srv/a%s1" % char}]},
            "elements[0].partner_path: %r contains %r, which rsync on the partner takes for a pattern; "
            "name a path without * ? [ \\" % ("/srv/a%s1" % char, char),
        )
        for char in "*?[\\"
    ),
    (
        {"elements": [{"path": "/a"}, {"path": "/srv/a[1]"}]},
        "elements[1].partner_path: '/srv/a[1]' contains '[', which rsync on the partner takes for a pattern; "
        "name a path without * ? [ \\",
    ),
    # local
    (
        {"partner": {"host": "x", "connection": "local"}},
        "elements[0].partner_path: is missing; with partner.connection local write the path of the other replica",
    ),
    (
        {"partner": {"host": "x", "connection": "local"}, "elements": [{"path": "/a", "partner_path": "/a/b"}]},
        "elements[0].partner_path: '/a/b' is inside elements[0].path '/a'; " + OVERLAP,
    ),
    (
        {
            "partner": {"host": "x", "connection": "local"},
            "elements": [{"path": "/a", "partner_path": "/b"}, {"path": "/b", "partner_path": "/c"}],
        },
        "elements[1].path: '/b' is the same path as elements[0].partner_path; " + OVERLAP,
    ),
    (
        {
            "partner": {"host": "x", "connection": "local", "port": 22},
            "elements": [{"path": "/a", "partner_path": "/b"}],
        },
        "partner.port: is not used with partner.connection local; leave it out",
    ),
    (
        {
            "partner": {"host": "x", "connection": "local", "host_key": KEY},
            "elements": [{"path": "/a", "partner_path": "/b"}],
        },
        "partner.host_key: is not used with partner.connection local; leave it out",
    ),
    (
        {
            "partner": {"host": "x", "connection": "local"},
            "account": {"user": "a"},
            "elements": [{"path": "/a", "partner_path": "/b"}],
        },
        "account: is not used with partner.connection local; leave it out",
    ),
    # sftp
    *(
        (
            {"partner": {"host": "x", "connection": "sftp"}, "settings": {"preserve": ["times", lost]}},
            "settings.preserve: '%s' cannot be kept with partner.connection sftp; leave it out" % lost,
        )
        for lost in ("hardlinks", "acls", "xattrs", "sparse")
    ),
    (
        {"partner": {"host": "x", "connection": "sftp"}, "elements": [{"path": "/a", "kind": "log"}]},
        "elements[0].kind: 'log' needs a runner on the partner, which partner.connection sftp does without; use tree",
    ),
    (
        {"partner": {"host": "x", "connection": "sftp"}, "elements": [{"path": "/tmp/a", "partner_path": "/b"}]},
        "elements[0].path: '/tmp/a' is under /tmp, of which the job's service has its own; name another path",
    ),
]


@pytest.mark.parametrize(("more", "message"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_bad_input_is_named_with_its_field_and_a_remedy(more, message):
    assert errors(**more)[0] == message


def test_every_problem_is_found_and_the_first_field_is_first():
    found = errors(nme=1, name="A", on_error={"retries": -1, "delay": "soon"}, elements=[{"path": "a"}, {"path": "b"}])
    assert [text.split(":")[0] for text in found] == [
        "nme",
        "name",
        "on_error.retries",
        "on_error.delay",
        "elements[0].path",
        "elements[1].path",
    ]


SFTP = {"host": "hq", "connection": "sftp"}


def test_a_password_is_in_no_job_and_in_no_error():
    job = made(partner=SFTP, account={"password": "s3cret"})
    assert job["account"] == dict(ACCOUNT, password=_job.KEPT)
    assert "s3cret" not in _job.document_text(job)
    VALIDATOR.validate(job)
    assert _job.secrets_in(job) == ["account.password"]
    assert _job.secrets_of({"account": {"password": "s3cret"}}) == {"account.password": "s3cret"}
    for none in ({}, {"account": None}, {"account": {"password": None}}, {"account": {"password": _job.KEPT}}):
        assert _job.secrets_of(none) == {}
    for more in ({"account": '{"password": "s3cret"'}, {"name": 1.5, "account": {"password": ["s3cret"]}}):
        assert "s3cret" not in str(_job.declare(base(partner=SFTP, **more))[1])
    # nor in one that somebody has edited
    edited = copy.deepcopy(job)
    edited["account"]["password"] = "s3cret"
    assert not VALIDATOR.is_valid(edited)
    problems = _job.normalise(edited)[1]
    assert [str(one) for one in problems] == [
        "account.password: is a secret, which does not belong here; apply the job again with it, which keeps it "
        "elsewhere"
    ]


def test_urls_are_in_no_job_and_in_no_error():
    urls = [" json://s3cret/a,b?c=d\n", "46elks://u:s3cret@1", "https://s3cret.example.com/x"]
    job = made(notification={"urls": urls})
    assert job["notification"]["urls"] == [_job.KEPT]
    assert "s3cret" not in _job.document_text(job)
    VALIDATOR.validate(job)
    given, problems = _job.read(base(notification={"urls": urls}))
    assert problems == []
    assert _job.secrets_of(given) == {"notification.urls": "\n".join(urls).replace("\n4", "4").strip()}
    assert _job.secrets_in(job) == ["notification.urls"]
    # one alone is a list, and a comma parts nothing
    assert _job.secrets_of(_job.read(base(notification={"urls": "json://a,json://b"}))[0]) == {
        "notification.urls": "json://a,json://b"
    }
    assert _job.secrets_of(_job.read(base(notification={"urls": _job.KEPT}))[0]) == {}
    for same in ({}, {"urls": [_job.KEPT]}, {"urls": _job.KEPT}, {"email": []}, {"urls": ["json://other"]}):
        assert changed(job, notification=same) == job
    for none in (None, [], ""):
        assert changed(job, notification={"urls": none})["notification"]["urls"] == []
    edited = copy.deepcopy(job)
    edited["notification"]["urls"] = ["json://s3cret"]
    assert not VALIDATOR.is_valid(edited)
    assert [str(one) for one in _job.normalise(edited)[1]] == [
        "notification.urls: is a secret, which does not belong here; apply the job again with it, which keeps it "
        "elsewhere"
    ]


def test_a_log_in_is_by_password_or_by_a_key_of_its_own():
    by_password = made(partner=SFTP, account={"user": "nas", "password": 123456})
    assert changed(by_password) == changed(by_password, account={"password": _job.KEPT}) == by_password
    assert changed(by_password, account={"user": "b"})["account"]["password"] == _job.KEPT
    by_key = changed(by_password, account={"private_key_file": "/k"})
    assert by_key["account"] == {"user": "nas", "private_key_file": "/k", "password": None}
    assert changed(by_key, account={"password": "s3cret"})["account"] == by_password["account"]
    assert changed(by_password, account={"password": None})["account"] == dict(ACCOUNT, user="nas")
    assert changed(by_password, partner={"connection": "ssh"})["account"] == dict(ACCOUNT, user="nas")
    VALIDATOR.validate(by_key)
    assert not VALIDATOR.is_valid(dict(by_key, account=dict(by_key["account"], password=_job.KEPT)))
    assert not VALIDATOR.is_valid(dict(by_password, partner=dict(by_password["partner"], connection="ssh")))


def test_a_private_key_is_never_repeated():
    secret = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0"
    for more in ({"partner": {"host": "hq", "host_key": secret}}, {"account": {"private_key_file": secret}}):
        assert "c2VjcmV0" not in str(_job.declare(base(**more))[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"on_error": {"delay": "60m"}}, {"on_error": {"delay": "1h"}}),
        ({"on_error": {"delay": "90S"}}, {"on_error": {"delay": " 90 s"}}),
        ({"on_error": {"delay": "24H"}}, {"on_error": {"delay": "1d"}}),
        ({"on_error": {"delay": 0}}, {"on_error": {"delay": "0m"}}),
        ({"on_error": {"retries": "3"}}, {"on_error": {"retries": 3.0}}),
        ({"on_error": {"backoff": "2"}}, {"on_error": {"backoff": 2}}),
        ({"on_error": {"backoff": " 2.50 "}}, {"on_error": {"backoff": 2.5}}),
        ({"on_error": {"max_delay": "60m"}}, {"on_error": {"max_delay": "1h"}}),
        ({"partner": {"host": "hq", "port": "22"}}, {}),
        ({"partner": '{"host": "hq", "port": 22}'}, {}),
        ({"partner": {"host": "hq", "connection": None, "host_key": None}}, {}),
        ({"enabled": "yes"}, {"enabled": 1}),
        ({"enabled": "Off"}, {"enabled": False}),
        ({"comment": " a "}, {"comment": "a"}),
        ({"comment": 7}, {"comment": "7"}),
        ({"schedule": {"at": "2:30"}}, {"schedule": {"at": ["02:30:00", "02:30"]}}),
        ({"schedule": {"at": "14:00, 2:30"}}, {"schedule": {"at": ["02:30", "14:00"]}}),
        ({"schedule": {"at": "02:30", "days": "Tuesday,MON"}}, {"schedule": {"at": "02:30", "days": ["mon", "tue"]}}),
        ({"schedule": {"at": "02:30", "days": list(_schedule.DAYS)}}, {"schedule": {"at": "02:30", "days": []}}),
        ({"schedule": {"every": "60m"}}, {"schedule": {"every": "1h", "at": None, "jitter": "6m"}}),
        (
            {"schedule": {"calendar": "Mon  02:30 Europe/Berlin"}},
            {"schedule": {"calendar": "Mon 02:30", "timezone": "Europe/Berlin"}},
        ),
        ({"schedule": {"at": "02:30", "timezone": " Etc/UTC"}}, {"schedule": {"at": "02:30", "timezone": "UTC"}}),
        ({"schedule": {"at": "02:30", "timezone": "Greenwich"}}, {"schedule": {"at": "02:30", "timezone": "utc"}}),
        (
            {"schedule": {"calendar": "Mon 02:30 Etc/GMT+0", "timezone": "zulu"}},
            {"schedule": {"calendar": "Mon 02:30 utc"}},
        ),
        ({"schedule": None}, {}),
        ({"notification": {"email": "a@b.c, d@e.f"}}, {"notification": {"email": ["a@b.c", "d@e.f", "a@b.c"]}}),
        ({"notification": {"email": ["d@e.f", "a@b.c"]}}, {"notification": {"email": ["a@b.c", "d@e.f"]}}),
        (
            {"partner": {"host": "hq", "host_key": [OTHER_KEY, KEY]}},
            {"partner": {"host": "hq", "host_key": [KEY, OTHER_KEY]}},
        ),
        ({"notification": {"events": "success,failure"}}, {"notification": {"events": ["failure", "success"]}}),
        (
            {"notification": {"events": "success,late", "late_after": "48 H"}, "schedule": {"at": "1:00"}},
            {"notification": {"events": ["late", "success"], "late_after": "2d"}, "schedule": {"at": "1:00"}},
        ),
        ({"settings": {"exclude": "*.tmp"}}, {"settings": {"exclude": ["*.tmp", "*.tmp"]}}),
        ({"settings": {"exclude": ""}}, {}),
        ({"settings": {"exclude": ["*", "!a", "*", "!b", "!b"]}}, {"settings": {"exclude": ["*", "!b"]}}),
        ({"settings": {"exclude": ["a", "!a", "a"]}}, {"settings": {"exclude": ["a"]}}),
        ({"settings": {"include": "*.txt, /a/"}}, {"settings": {"include": ["*.txt", "/a/"]}}),
        ({"settings": {"max_delete": "025 %"}}, {"settings": {"max_delete": " 25%"}}),
        ({"settings": {"max_delete": "25%", "max_change": None}}, {"settings": None}),
        ({"settings": {"max_delete": 100}}, {"settings": {"max_delete": " 0100 "}}),
        ({"settings": {"max_change": 100.0}}, {"settings": {"max_change": "100"}}),
        ({"settings": {"max_delete": 0}}, {"settings": {"max_delete": "0"}}),
        ({"settings": {"bandwidth_limit": "2048k"}}, {"settings": {"bandwidth_limit": "2 M"}}),
        ({"settings": {"bandwidth_limit": "1T"}}, {"settings": {"bandwidth_limit": "1024g"}}),
        ({"settings": {"versions_max": "51200m"}}, {"settings": {"versions_max": "50G"}}),
        ({"settings": {"versions_max": "20 %"}}, {}),
        ({"settings": {"keep_versions": "168h"}}, {}),
        ({"settings": {"keep_versions": 0}}, {"settings": {"keep_versions": "0d"}}),
        (
            {"settings": {"preserve": "sparse, times,links"}},
            {"settings": {"preserve": ["times", "links", "sparse", "links"]}},
        ),
        ({"settings": {"preserve": None}}, {}),
        ({"settings": {"verify_every": "10"}}, {"settings": {"verify_every": 10.0}}),
        ({"settings": {"verify": "checksum", "verify_every": None}}, {"settings": {"verify": "checksum"}}),
        ({"limits": {"parallel": "1"}}, {"limits": None}),
        ({"limits": {"timeout": "120m", "nice": "10"}}, {"limits": {"timeout": " 2 H", "nice": 10.0}}),
        ({"limits": {"timeout": None, "nice": None}}, {}),
        ({"accept_circular": " as before. "}, {"accept_circular": "as before"}),
        ({"accept_circular": "as before . .. "}, {"accept_circular": "as before"}),
        ({"before": [], "after": None}, {}),
        ({"before": [{"unit": " a.service "}]}, {"before": [{"unit": "a.service"}], "after": []}),
        ({"elements": [{"path": "/srv/a", "previous_path": None}]}, {}),
        ({"elements": [{"path": "/srv/a", "settings": {}}]}, {}),
        ({"elements": [{"path": "/srv/a", "settings": {"direction": None, "exclude": None}}]}, {}),
        (
            {
                "elements": [
                    {"path": "/srv/a", "settings": {"bandwidth_limit": "2048k", "exclude": "a, b", "max_delete": 7}}
                ]
            },
            {
                "elements": [
                    {
                        "path": "/srv/a",
                        "settings": '{"max_delete": "07", "exclude": ["a", "b"], "bandwidth_limit": "2 M", "verify": '
                        "null}",
                    }
                ]
            },
        ),
        (
            {"elements": [{"path": "/srv/a", "previous_path": "//b/"}]},
            {"elements": [{"path": "/srv/a", "previous_path": "/b"}]},
        ),
        (
            {"elements": [{"path": "/srv/a"}, {"path": "/b"}, {"path": "/c", "requires": "/srv/a/"}]},
            {"elements": [{"path": "/srv/a"}, {"path": "/b", "requires": []}, {"path": "/c", "requires": ["/srv/a"]}]},
        ),
        (
            {"elements": [{"path": "/a"}, {"path": "/b"}, {"path": "/c", "requires": ["/b", "/a", "/b"]}]},
            {"elements": [{"path": "/a"}, {"path": "/b"}, {"path": "/c", "requires": ["/a", "/b"]}]},
        ),
        ({"elements": [{"path": "//srv///a/./"}]}, {"elements": [{"path": "/srv/a", "partner_path": "/srv/a"}]}),
        (
            {"partner": {"host": "hq", "host_key": KEY + " root@hq, the new one"}},
            {"partner": {"host": "hq", "host_key": [KEY, KEY]}},
        ),
        ({"account": {"user": None, "private_key_file": None}}, {"account": None}),
        ({"state": "present"}, {"state": None}),
    ],
)
def test_equal_spellings_are_the_same_job(one, other):
    assert made(**one) == made(**other)
    assert _job.normalise(made(**one)) == (made(**one), [])


def test_the_longest_texts_are_those_of_the_schema():
    longest = "/" + "a" * 4095
    elements = [{"path": longest}, {"path": "/b" * 2000, "requires": [longest]}]
    schedule = {"calendar": ",".join(["02:30"] * 167)[:1000].rstrip(":,")}
    VALIDATOR.validate(
        made(
            elements=elements,
            schedule=schedule,
            settings={"exclude": ["a" * 4096]},
            partner={"host": "fe80::1%" + "e" * 64, "host_key": key("ssh-rsa", b"e", b"n" * 6100)},
        )
    )


@pytest.mark.parametrize(
    "host", ["hq", "a_b", "HQ.example.com", "192.0.2.1", "2001:db8::1", "fe80::1%eth0", "xn--bcher-kva.example", "hq."]
)
def test_good_hosts(host):
    assert made(partner={"host": host})["partner"]["host"] == host


def test_all_key_types():
    keys = [
        KEY,
        key("ssh-rsa", b"e", b"n"),
        key("ecdsa-sha2-nistp256", b"nistp256", b"p"),
        key("sk-ssh-ed25519@openssh.com", b"k", b"ssh:"),
        key("sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", b"p", b"ssh:"),
    ]
    job = made(partner={"host": "hq", "host_key": keys})
    assert job["partner"]["host_key"] == sorted(keys)
    VALIDATOR.validate(job)


# --- omitted, null, value --------------------------------------------------------------------------------------


def full():
    return made(
        comment="c",
        enabled=False,
        partner={"host": "hq", "port": 2222, "host_key": [KEY]},
        account={"user": "u", "private_key_file": "/k"},
        schedule={"at": ["02:30", "14:00"], "days": ["mon"], "timezone": "UTC", "jitter": "7m", "catch_up": False},
        on_error={"retries": 1, "delay": "1m", "backoff": 1.5, "max_delay": "10m"},
        notification={"email": ["a@b"], "urls": ["json://s3cret"], "events": ["late", "success"], "late_after": "90d"},
        settings={
            "direction": "from_partner",
            "conflict": "keep_both",
            "delete": "synced",
            "max_delete": "10%",
            "max_change": "500",
            "include": ["y"],
            "exclude": ["x"],
            "preserve": ["times", "links"],
            "owners": "numbers",
            "verify_every": 10,
            "keep_versions": "30d",
            "versions_max": "50G",
            "bandwidth_limit": "20M",
            "compress": "always",
        },
        elements=[
            {"path": "/srv/a", "partner_path": "/srv/b", "previous_path": "/srv/d"},
            {"path": "/srv/c", "kind": "log", "requires": ["/srv/a"], "settings": {"direction": "to_partner"}},
            {
                "path": "/srv/e",
                "settings": {
                    "direction": "to_partner",
                    "delete": "extraneous",
                    "max_delete": "100",
                    "include": [],
                    "exclude": ["*.bak"],
                    "preserve": ["times"],
                    "verify_every": 2,
                    "keep_versions": "1d",
                },
            },
        ],
        before=[{"unit": "dump-db.service"}, {"unit": "mount@srv-dump.service"}],
        after=[{"unit": "thaw\\x2ddb:1.service"}],
        limits={"parallel": 4, "timeout": "2h", "nice": 10},
        accept_circular="the other one is read only",
    )


def test_omitted_leaves_everything():
    assert changed(full()) == full()


def leaves(value, path=()):
    if isinstance(value, dict):
        for name, one in value.items():
            yield from leaves(one, (*path, name))
    else:
        yield path


AT_DEFAULT = (
    ("partner", "connection"),
    ("account", "password"),
    ("schedule", "every"),
    ("schedule", "day_of_month"),
    ("schedule", "calendar"),
    ("settings", "verify"),
)


@pytest.mark.parametrize("path", [path for path in leaves(full()) if path[0] not in ("version", "name", "scope")])
def test_null_sets_the_default_of_one_field_and_leaves_the_rest(path):
    if path in (("partner", "host"), ("elements",), ("schedule", "at")):
        return_path = "schedule" if path[0] == "schedule" else ".".join(path)
        given = None
        for name in reversed(path):
            given = {name: given}
        problems = _job.declare(dict({"name": "demo"}, **given), full())[1]
        assert [problem.path for problem in problems] == [return_path]
        return
    fresh = made(schedule={"at": "00:00"})
    expected = full()
    given, into, default = None, expected, fresh
    for name in path[:-1]:
        into, default = into[name], default[name]
    into[path[-1]] = default[path[-1]]
    for name in reversed(path):
        given = {name: given}
    assert changed(full(), **given) == expected
    assert (expected != full()) is (path not in AT_DEFAULT)


def test_null_for_a_whole_mapping():
    assert changed(full(), on_error=None) == dict(
        full(), on_error={"retries": 3, "delay": "5m", "backoff": 2.0, "max_delay": None}
    )
    assert changed(full(), schedule=None) == dict(full(), schedule=None)
    assert changed(full(), account=None) == dict(full(), account=ACCOUNT)


def test_lists_are_replaced_whole_and_entries_start_from_the_defaults():
    job = changed(full(), elements=[{"path": "/srv/a"}])
    assert job == dict(
        full(),
        elements=[dict(ELEMENT, path="/srv/a", partner_path="/srv/a")],
    )
    assert changed(full(), settings={"exclude": ["y"]})["settings"]["exclude"] == ["y"]


def test_one_way_of_scheduling_clears_the_others():
    job = changed(full(), schedule={"every": "1h"})
    assert job["schedule"] == dict(full()["schedule"], every="1h", at=None, days=[])
    job = changed(job, schedule={"calendar": "daily"})
    assert (job["schedule"]["every"], job["schedule"]["calendar"]) == (None, "daily")
    job = changed(job, schedule={"at": "03:00"})
    assert (job["schedule"]["calendar"], job["schedule"]["at"]) == (None, ["03:00"])
    for one, other in (
        ({"days": list(_schedule.DAYS)}, {"day_of_month": 1}),
        ({"day_of_month": list(range(1, 32))}, {"days": "mon"}),
    ):
        job = changed(changed(job, schedule=other), schedule=one)
        assert (job["schedule"]["days"], job["schedule"]["day_of_month"]) == ([], [])
    assert job["schedule"]["timezone"] == "UTC"


def test_a_default_jitter_follows_the_period_and_a_chosen_one_stays():
    job = made(schedule={"at": "02:30"})
    assert job["schedule"]["jitter"] == "15m"
    assert changed(job, schedule={"every": "10m"})["schedule"]["jitter"] == "1m"
    assert changed(job, schedule={"calendar": "daily"})["schedule"]["jitter"] == "0s"
    chosen = changed(job, schedule={"jitter": "4m"})
    assert changed(chosen, schedule={"every": "10m"})["schedule"]["jitter"] == "4m"
    assert changed(chosen, schedule={"jitter": None})["schedule"]["jitter"] == "15m"


@pytest.mark.parametrize("schedule", [{"every": "1m"}, {"at": "02:30"}, {"at": "02:30", "day_of_month": 31}])
def test_a_schedule_says_when_a_job_is_late_and_a_job_may_say_it_itself(schedule):
    job = made(schedule=schedule, notification={"events": "late"})
    assert job["notification"]["late_after"] is None
    VALIDATOR.validate(job)
    chosen = changed(job, notification={"late_after": "1464h"})
    assert chosen["notification"]["late_after"] == "61d"
    for more in ({"schedule": None}, {"schedule": {"calendar": "daily"}}, {"notification": {"events": None}}):
        other = changed(chosen, **more)
        assert other["notification"]["late_after"] == "61d"
        VALIDATOR.validate(other)
        assert changed(other, schedule=schedule, notification={"events": "late"}) == chosen
    for more in ({"schedule": None}, {"schedule": {"calendar": "daily"}}):
        problems = _job.declare({"name": "demo", **more}, job)[1]
        assert [problem.path for problem in problems] == ["notification.late_after"]
    shorter = changed(made(schedule={"every": "1h"}), notification={"late_after": "1h"})
    problems = _job.declare({"name": "demo", "schedule": {"every": "2h"}}, shorter)[1]
    assert [problem.path for problem in problems] == ["notification.late_after"]


def test_between_ssh_and_local_and_back():
    local = changed(full(), partner={"connection": "local"}, elements=[{"path": "/a", "partner_path": "/b"}])
    assert local["partner"] == {"host": "hq", "port": None, "connection": "local", "host_key": []}
    assert local["account"] is None
    back = changed(local, partner={"connection": "ssh"})
    assert back["partner"]["port"] == 22
    assert back["account"] == ACCOUNT


def test_sftp_has_an_account_and_any_path():
    partner = {"host": "nas", "connection": "sftp"}
    elements = [{"path": "/a", "partner_path": "/C:/a [*?\\"}, {"path": "/b", "partner_path": "/tmp/b"}]
    job = made(partner=partner, elements=elements, settings={"preserve": ["times", "owner"]})
    assert job["partner"] == {"host": "nas", "port": 22, "connection": "sftp", "host_key": []}
    assert job["account"] == ACCOUNT
    assert [one["partner_path"] for one in job["elements"]] == [one["partner_path"] for one in elements]
    VALIDATOR.validate(job)
    assert changed(job, partner={"connection": "ssh"}, elements=[{"path": "/a"}])["partner"]["connection"] == "ssh"


def test_what_goes_together_is_asked_of_the_whole_job():
    both = made(settings={"direction": "both"})
    assert [str(one) for one in _job.declare({"name": "demo", "settings": {"delete": "extraneous"}}, both)[1]] == [
        "settings.delete: 'extraneous' needs a source, which direction both does not have; use synced or never"
    ]
    mirror = made(settings={"delete": "extraneous"})
    assert _job.declare({"name": "demo", "settings": {"direction": "both"}}, mirror)[1][0].code == "conflict"
    assert changed(mirror, settings={"direction": "both", "delete": None})["settings"]["delete"] == "never"


def test_checksums_in_every_run_end_those_of_some_runs():
    some = made(settings={"verify_every": 10})
    every = changed(some, settings={"verify": "checksum"})
    assert every["settings"] == dict(SETTINGS, verify="checksum", verify_every=None)
    assert changed(every, settings={"verify": "metadata", "verify_every": 5})["settings"]["verify_every"] == 5
    problems = _job.declare({"name": "demo", "settings": {"verify_every": 5}}, every)[1]
    assert [(problem.code, problem.path) for problem in problems] == [("conflict", "settings.verify_every")]


OWN = {"direction": "from_partner", "exclude": ["y"]}


def test_an_elements_own_settings_hold_over_the_jobs_and_are_kept_as_given():
    job = made(
        settings={"direction": "from_partner", "exclude": ["x"], "delete": "synced"},
        elements=[{"path": "/a"}, {"path": "/b", "settings": OWN}, {"path": "/c", "settings": {"exclude": []}}],
    )
    assert [one["settings"] for one in job["elements"]] == [None, OWN, {"exclude": []}]
    # the job's settings are edited: who has none of that option follows, who has it stays, also where it was the same
    edited = changed(job, settings={"direction": "to_partner", "exclude": ["z"]})
    assert edited["elements"] == job["elements"]
    effective = [_job.settings_of(edited, one) for one in edited["elements"]]
    assert [(one["direction"], one["exclude"], one["delete"]) for one in effective] == [
        ("to_partner", ["z"], "synced"),
        ("from_partner", ["y"], "synced"),
        ("to_partner", [], "synced"),
    ]
    # an entry of a given list starts from the defaults
    assert changed(edited, elements=[{"path": "/b"}])["elements"][0]["settings"] is None


def test_checksums_of_an_element_end_the_jobs_of_some_runs():
    job = made(settings={"verify_every": 10}, elements=[{"path": "/a", "settings": {"verify": "checksum"}}])
    assert _job.settings_of(job, job["elements"][0]) == dict(SETTINGS, verify="checksum", verify_every=None)
    VALIDATOR.validate(job)
    own = made(elements=[{"path": "/a", "settings": {"verify_every": 10}}])
    problems = _job.declare({"name": "demo", "settings": {"verify": "checksum"}}, own)[1]
    assert [one.path for one in problems] == ["elements[0].settings.verify_every"]


def test_what_an_elements_own_settings_make_good():
    log = {"path": "/b", "kind": "log", "settings": {"direction": "to_partner", "preserve": ["permissions"]}}
    VALIDATOR.validate(made(settings={"direction": "both"}, elements=[{"path": "/a"}, log]))
    mirror = {"settings": {"delete": "extraneous"}, "elements": [{"path": "/a", "settings": {"direction": "both"}}]}
    mirror["elements"][0]["settings"]["delete"] = "synced"
    VALIDATOR.validate(made(**mirror))
    back = {"direction": "from_partner", "preserve": ["times"]}
    made(scope="user", settings={"preserve": ["owner"]}, elements=[{"path": "/a", "settings": back}])


def test_owners_are_kept_where_the_target_may_give_files_away():
    owner = {"preserve": ["owner"]}
    assert made(settings=dict(owner, direction="both"))["settings"]["preserve"] == ["owner"]
    assert made(scope="user", settings=owner)["settings"]["preserve"] == ["owner"]  # the partner's side decides
    for preserve in (None, [], ["group"]):
        made(scope="user", settings={"direction": "from_partner", "preserve": preserve})
    local = {"partner": {"host": "x", "connection": "local"}, "elements": [{"path": "/a", "partner_path": "/b"}]}
    assert len(errors(scope="user", settings=owner, **local)) == 1


@pytest.mark.parametrize("pattern", ["*", "/a", "a/", "a\\\\", "\\#a", "\\!a", "a\\ ", "a b", "**/a/**", "[a-c]?"])
@pytest.mark.parametrize("name", ["include", "exclude"])
def test_good_patterns(name, pattern):
    for patterns in ([pattern], [pattern, "!b"], ["b", "!" + pattern]):
        job = made(settings={name: patterns})
        assert job["settings"][name] == patterns
        VALIDATOR.validate(job)


def test_tmp_is_for_user_jobs():
    assert made(scope="user", elements=[{"path": "/tmp/a"}])["elements"][0]["path"] == "/tmp/a"


def test_a_path_of_this_server_may_look_like_a_pattern():
    odd = {"path": "/srv/a[1]*?\\", "partner_path": "/srv/b"}
    assert made(elements=[odd])["elements"] == [dict(ELEMENT, **odd)]
    local = {"partner": {"host": "hq", "connection": "local"}, "elements": [{"path": "/a", "partner_path": "/b[*?\\"}]}
    job = made(**local)
    assert job["elements"] == [dict(ELEMENT, **local["elements"][0])]
    VALIDATOR.validate(job)
    VALIDATOR.validate(made(elements=[odd]))


def test_resolving_changes_neither_of_its_arguments():
    current, given_job = full(), base(schedule={"every": "1h"})
    kept = copy.deepcopy((current, given_job))
    _job.declare(given_job, current)
    assert (current, given_job) == kept


# --- the runner's own directories ------------------------------------------------------------------------------

RUNNERS = {"/etc/serversync": "jobs and the private key", "/home/a/.local/share/serversync": "program"}


def own(local=False, **element):
    partner = {"host": "hq", "connection": "local" if local else "ssh"}
    job = made(scope="user", partner=partner, elements=[{"path": "/srv/x", "partner_path": "/srv/y"}, element])
    return [str(problem) for problem in _job.own_problems(job, RUNNERS)]


@pytest.mark.parametrize("path", ["/srv", "/etc/serversync2", "/etc/ssh", "/home/a/.local/share/x", "/home/b", "/et"])
def test_paths_beside_the_runners_directories_are_fine(path):
    job = made(elements=[{"path": path}])
    assert _job.own_problems(job, RUNNERS) == []


@pytest.mark.parametrize(
    ("path", "how", "directory", "remedy"),
    [
        ("/etc/serversync", "is", "/etc/serversync", "name another path"),
        ("/etc/serversync/keys", "is inside", "/etc/serversync", "name another path"),
        ("/etc", "is around", "/etc/serversync", "name the subdirectories that are meant instead"),
        ("/home", "is around", "/home/a/.local/share/serversync", "name the subdirectories that are meant instead"),
    ],
)
def test_the_runners_directories_are_refused(path, how, directory, remedy):
    text = "%r %s %s, which holds the runner's %s; %s" % (path, how, directory, RUNNERS[directory], remedy)
    assert own(path=path, partner_path="/b") == ["elements[1].path: " + text]
    assert own(local=True, path="/a", partner_path=path) == ["elements[1].partner_path: " + text]
    assert own(path="/a", partner_path=path) == []  # the partner guards its own


# --- pairings --------------------------------------------------------------------------------------------------

PAIRINGS = [
    {"name": "other", "host": "hq", "keys": [OTHER_KEY]},
    {"name": "hq", "host": "hq.example.com", "keys": [KEY]},
]


def test_a_key_must_be_the_pinned_one():
    pinned = "SHA256:" + _host_key.fingerprint(KEY)[7:]
    given_print = _host_key.fingerprint(OTHER_KEY)
    problem = _host_key.pin_problem(made(partner={"host": "hq.example.com", "host_key": OTHER_KEY}), PAIRINGS)
    assert str(problem) == (
        "partner.host_key: is not the key pinned for pairing hq (%s pinned, %s given); "
        "re-pair with the role if the server's key was changed on purpose" % (pinned, given_print)
    )
    assert problem.code == "host_key_mismatch"


def test_the_name_of_a_pairing_goes_before_its_host():
    assert _host_key.pin_problem(made(partner={"host": "hq", "host_key": KEY}), PAIRINGS) is None
    assert _host_key.pin_problem(made(partner={"host": "hq", "host_key": OTHER_KEY}), PAIRINGS) is not None


def test_no_pairing_or_no_key_is_no_contradiction():
    assert _host_key.pin_problem(made(partner={"host": "elsewhere", "host_key": OTHER_KEY}), PAIRINGS) is None
    assert _host_key.pin_problem(made(), PAIRINGS) is None


def test_the_fingerprint_is_that_of_ssh_keygen():
    known = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"  # github.com's
    assert _host_key.fingerprint(known) == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"


# --- documents and schema --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[]", ": holds a list, not a job"),
        ("{}", "version: None is not 1; this version of the collection reads no other"),
        ('{"version": true}', "version: True is not 1; this version of the collection reads no other"),
        ('{"version": 2}', "version: 2 is not 1; this version of the collection reads no other"),
        ('{"version": 1, "name": "a", "state": "absent"}', "state: is not part of a job document; remove it"),
        ('{"version": 1, "name": "a"}', "partner.host: is missing; name the partner server"),
        *(
            (
                '{"version": 1, "machine_id": %s}' % json.dumps(wrong),
                "machine_id: %r is not a machine id; remove it" % wrong,
            )
            for wrong in (None, 1, "", "uninitialized", MACHINE_ID[1:], MACHINE_ID + "\n", "g" + MACHINE_ID[1:])
        ),
    ],
)
def test_damaged_documents(text, message):
    problems = _job.parse_document(text)[1]
    assert str(problems[0]) == message


def test_the_schema_files_are_up_to_date():
    for path, text in generate_schema.texts(_job, _schema.schema_text()).items():
        assert path.read_text(encoding="utf-8") == text, "write it with: make docs"


def wrong_places(written):
    """Where the schema for editors finds something wrong."""
    return sorted(".".join(map(str, error.absolute_path)) for error in LISTS.iter_errors(written))


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"elments": []}, "0"),
        ({"omitted": "reset"}, "0"),
        ({"partner": {"hostname": "hq"}}, "0.partner"),
        ({"partner": "hq"}, "0.partner"),
        ({"partner": {"port": 65536}}, "0.partner.port"),
        ({"partner": {"port": "ssh"}}, "0.partner.port"),
        ({"schedule": {"at": [2.5]}}, "0.schedule.at.0"),
        ({"schedule": {"every": 15}}, "0.schedule.every"),
        ({"settings": {"delete": "all"}}, "0.settings.delete"),
        ({"settings": {"max_delete": 2.5}}, "0.settings.max_delete"),
        ({"settings": {"preserve": ["time"]}}, "0.settings.preserve.0"),
        ({"settings": {"exclude": [None]}}, "0.settings.exclude.0"),
        ({"enabled": "perhaps"}, "0.enabled"),
        ({"enabled": 2}, "0.enabled"),
        ({"elements": "/a"}, "0.elements"),
        ({"elements": ["/a"]}, "0.elements.0"),
        ({"elements": [{}]}, "0.elements.0"),
        ({"elements": [{"path": None}]}, "0.elements.0.path"),
        ({"elements": [{"path": "/a", "settings": {"verify": "size"}}]}, "0.elements.0.settings.verify"),
        ({"before": [{"name": "a.service"}]}, "0.before.0"),
    ],
)
def test_an_editor_finds_what_is_wrong(given, where):
    assert set(wrong_places([dict({"name": "a"}, **given)])) == {where}
    variables = {"lines_jobs": [dict({"name": "a"}, **given)]}
    assert set(wrong_places(variables)) == {"lines_jobs." + where}


def test_an_editor_finds_a_job_without_a_name():
    assert wrong_places([{"partner": {"host": "hq"}}]) == ["0"]
    assert wrong_places([{"name": None}]) == ["0.name"]


@pytest.mark.parametrize(
    "written",
    [
        [],
        [{"name": "a", "state": "absent"}],
        [{"name": "{{ line }}-programs", "copy_from": "base", "settings": "{{ kind.settings | default(omit) }}"}],
        [{"name": "a", "enabled": "{{ active }}", "on_error": {"retries": "{{ often }}"}, "elements": "{{ paths }}"}],
        {"runner_jobs": "{{ query('ansible.builtin.varnames', '_jobs$') }}", "runner_scope": "user", "jobs": 3},
        {"lines_jobs": None, "everywhere_jobs": [{"name": "a", "schedule": {"every": 0, "at": "2:30, 3:30"}}]},
    ],
)
def test_an_editor_takes_what_ansible_takes(written):
    assert wrong_places(written) == []


def test_an_editor_takes_the_normal_form():
    fields = {name: value for name, value in full().items() if name != "version"}
    assert wrong_places([fields]) == []


def test_the_schema_is_one_and_describes_every_field():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def walk(schema):
        for part in schema.get("properties", {}).values():
            assert part["description"]
            walk(part)
            walk(part.get("items", {}))
        if schema.get("type") == "object" or "properties" in schema:
            assert schema["additionalProperties"] is False

    walk(SCHEMA)


LATER = {
    "account.password",
    "notification.urls",
    "notification.late_after",
    "machine_id",
    "before",
    "after",
    "limits",
    "limits.timeout",
    "limits.nice",
    "accept_circular",
    "schedule.day_of_month",
    "on_error.backoff",
    "on_error.max_delay",
    "elements[].kind",
    "elements[].previous_path",
    "elements[].requires",
    "elements[].settings",
} | {"settings.%s" % name for name in SETTINGS if name not in ("direction", "delete", "exclude")}


def may_be_left_out(path):
    """Whether a document may lack the field; an element has of its settings those that are its own."""
    name = ".".join("[]" if isinstance(one, int) else one for one in path).replace(".[]", "[]")
    return name in LATER or name.startswith("elements[].settings.")


def mutants(value, path=()):
    """Every document that differs from this one by one key or one type; those that may be left out are not."""
    if isinstance(value, dict):
        yield path, dict(value, surplus=1)
        for name in value:
            if not may_be_left_out((*path, name)):
                yield (*path, name), {key: one for key, one in value.items() if key != name}
            for where, inner in mutants(value[name], (*path, name)):
                yield where, dict(value, **{name: inner})
    elif isinstance(value, list):
        yield path, "text"
        for number, entry in enumerate(value):
            for where, inner in mutants(entry, (*path, number)):
                yield where, [*value[:number], inner, *value[number + 1 :]]
    else:
        yield path, [value]
        yield path, {"value": value}
        if not isinstance(value, bool):
            yield path, True
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            yield path, 12345678


@pytest.mark.parametrize("number", range(4))
def test_the_schema_accepts_the_normal_form_and_no_mutant(number):
    job = [made(), full(), made(scope="user", schedule={"every": "90s"}), _job.bound(made(), MACHINE_ID)][number]
    VALIDATOR.validate(job)
    count = 0
    for where, mutant in mutants(job):
        assert not VALIDATOR.is_valid(mutant), (where, mutant)
        count += 1
    assert count > 100


def test_a_document_of_the_version_before_is_read_with_the_defaults():
    job = made(settings={"direction": "from_partner", "exclude": ["x"]}, elements=[{"path": "/a"}, {"path": "/b"}])
    old = copy.deepcopy(job)
    del old["limits"], old["accept_circular"]
    old["settings"] = {"direction": "from_partner", "exclude": ["x"], "delete": "never"}
    for element in old["elements"]:
        del element["previous_path"], element["settings"]
    VALIDATOR.validate(old)
    assert _job.parse_document(json.dumps(old)) == (job, [])
    old["settings"]["verify_every"] = 10
    VALIDATOR.validate(old)


def test_what_may_be_left_out_of_a_document_has_a_default_and_nothing_else_has():
    def walk(schema, field, path=()):
        parts = {part.name: part for part in field.parts}
        for name, one in schema["properties"].items():
            if name == "machine_id":  # which no other server's may stand in for
                assert "default" not in one
                assert name not in schema["required"]
                continue
            here = (*path, name)
            assert ("default" in one) is (name not in schema["required"]) is may_be_left_out(here), here
            if "default" in one:
                assert one["default"] == parts[name].default()
            part = parts.get(name)
            if part and part.partial:
                # what is not its own is the job's, and so has no default
                assert "required" not in one
                assert not any("default" in inner or "null" in inner["type"] for inner in one["properties"].values())
            elif part and part.parts:
                walk(one, part, here)
            elif part and part.element and part.element.parts:
                walk(one["items"], part.element, (*here, 0))

    walk(SCHEMA, _job.JOB)


@pytest.mark.parametrize(
    "more",
    [
        {"name": "A"},
        {"name": "a\n"},
        {"comment": "a\nb"},
        {"schedule": dict(full()["schedule"], every="1h")},
        {"schedule": dict(full()["schedule"], at=None)},
        {"schedule": dict(full()["schedule"], at=None, every="1h")},
        {"schedule": dict(full()["schedule"], at=["2:30"])},
        {"schedule": dict(full()["schedule"], at=["02:30:00"])},
        {"schedule": dict(full()["schedule"], jitter="60")},
        {"schedule": dict(full()["schedule"], days=["tue", "tue"])},
        {"account": None},
        {"partner": {"host": "hq", "port": None, "connection": "ssh", "host_key": []}},
        {"partner": {"host": "hq", "port": 22, "connection": "local", "host_key": []}},
        {"partner": {"host": "-x", "port": 22, "connection": "ssh", "host_key": []}},
        {"partner": {"host": "hq", "port": None, "connection": "sftp", "host_key": []}},
        *(
            {"partner": {"host": "hq", "port": 22, "connection": "sftp", "host_key": []}, **wrong}
            for wrong in (
                {"account": None},
                {"settings": dict(full()["settings"], preserve=["acls"])},
                {"elements": [dict(full()["elements"][0], kind="log")]},
                {"elements": [dict(full()["elements"][0], path="/tmp/a")]},
                {"elements": [dict(full()["elements"][0], settings={"preserve": ["acls"]})]},
                {"elements": [dict(full()["elements"][0], settings={"compress": "never"})]},
            )
        ),
        *(
            {
                "elements": [dict(full()["elements"][0], settings=own, **element)],
                "settings": dict(full()["settings"], verify_every=None, **common),
            }
            for own, element, common in (
                ({}, {}, {}),
                ({"direction": None}, {}, {}),
                ({"max_change": None}, {}, {}),
                ({"path": "/a"}, {}, {}),
                ({"exclude": ["a", "a"]}, {}, {}),
                ({"bandwidth_limit": "2 M"}, {}, {}),
                ({"direction": "both", "delete": "extraneous"}, {}, {}),
                ({"direction": "both"}, {}, {"delete": "extraneous"}),
                ({"delete": "extraneous"}, {}, {"direction": "both"}),
                ({"verify": "checksum", "verify_every": 5}, {}, {}),
                ({"verify_every": 5}, {}, {"verify": "checksum"}),
                ({"direction": "both"}, {"kind": "log"}, {}),
                ({"preserve": ["owner"]}, {"kind": "log"}, {"direction": "both"}),
                ({"delete": "synced"}, {"kind": "log"}, {}),
                ({"preserve": ["times"]}, {"kind": "log"}, {}),
                (None, {"kind": "log"}, {"direction": "both"}),
            )
        ),
        {"elements": [dict(full()["elements"][0], partner_path="/tmp/a")]},
        *(
            {"schedule": schedule, "notification": dict({"email": [], "events": ["late"]}, **late)}
            for schedule in (None, dict(full()["schedule"], at=None, days=[], calendar="daily"))
            for late in ({}, {"late_after": None})
        ),
        {"notification": dict(full()["notification"], late_after="48 h")},
        {"on_error": {"retries": -1, "delay": "5m"}},
        {"on_error": {"retries": 3, "delay": "5 m"}},
        {"on_error": {"retries": 3, "delay": "5m", "backoff": 0.5}},
        {"on_error": {"retries": 3, "delay": "5m", "backoff": "2"}},
        {"on_error": {"retries": 3, "delay": "5m", "max_delay": "60 m"}},
        *(
            {"settings": dict(full()["settings"], **wrong)}
            for wrong in (
                {"direction": "both", "delete": "extraneous"},
                {"verify": "checksum"},
                {"conflict": "first_wins"},
                {"max_delete": None},
                {"max_delete": 25},
                {"max_delete": "0%"},
                {"max_delete": "101%"},
                {"max_delete": "025%"},
                {"max_delete": "0.5"},
                {"max_delete": "1000000000"},
                {"max_change": "20M"},
                {"max_change": "5\n"},
                {"include": ["!a"]},
                {"include": ["!a", "a"]},
                {"include": ["a", "!"]},
                {"include": ["a", "#b"]},
                {"include": ["/"]},
                {"include": None},
                {"exclude": ["a\\"]},
                {"exclude": ["a", "a"]},
                {"preserve": ["perms"]},
                {"preserve": ["times", "times"]},
                {"owners": "ids"},
                {"verify_every": 0},
                {"verify_every": 10001},
                {"keep_versions": "7 d"},
                {"keep_versions": None},
                {"versions_max": "20"},
                {"versions_max": "50g"},
                {"versions_max": None},
                {"bandwidth_limit": "0M"},
                {"bandwidth_limit": "20%"},
                {"bandwidth_limit": 20},
                {"compress": True},
            )
        ),
        {"accept_circular": ""},
        {"accept_circular": "a\nb"},
        {"limits": {}},
        {"limits": {"parallel": 9}},
        {"limits": {"parallel": 1, "timeout": "2 h"}},
        {"limits": {"parallel": 1, "timeout": 7200}},
        {"limits": {"parallel": 1, "nice": 20}},
        {"limits": {"parallel": 1, "nice": -1}},
        {"limits": {"parallel": 1, "nice": None}},
        {"limits": None},
        {"elements": [{"path": "/a", "partner_path": "/b", "previous_path": "b"}]},
        {"elements": [{"path": "/a", "partner_path": "/b", "requires": ["b"]}]},
        *(
            {name: units}
            for name in ("before", "after")
            for units in (
                None,
                [{}],
                ["a.service"],
                *([{"unit": wrong}] for wrong in ("a", "-a.service", "a@.service", "a b.service", "a.service\n")),
                [{"unit": "serversync@a.service"}],
                [{"unit": "a.service", "more": 1}],
                [{"unit": "a.service"}, {"unit": "a.service"}],
            )
        ),
        {"elements": [{"path": "/a", "partner_path": "/b", "requires": ["/b", "/b"]}]},
        {"elements": [{"path": "/a", "partner_path": "/b", "requires": None}]},
        {"elements": []},
        *({"elements": [{"path": "/a", "partner_path": "/srv/a%s1" % char}]} for char in "*?[\\"),
        *(
            {"elements": [{"path": path, "partner_path": "/b"}]}
            for path in (
                "a",
                "/",
                "/a/",
                "//a",
                "/a/../b",
                "/a/./b",
                "/a\nb",
                "/a\n",
                "/proc/x",
                "/run",
                "/tmp/x",
                "/a/.serversync",
            )
        ),
    ],
)
def test_the_schema_refuses_what_the_grammar_refuses(more):
    assert not VALIDATOR.is_valid(dict(full(), **more))


EMAIL = SCHEMA["properties"]["notification"]["properties"]["email"]["items"]
GOOD_EMAILS = ("a@b", "ops@example.com", "a.b+c@d.e.f", "%s@b" % ("a" * 64), "a'b@x-y.example")
BAD_EMAILS = (
    "a",
    "a@",
    "@b",
    "a@[",
    "a@[::1]",
    "a@b@c",
    "a,b@c",
    "a@b,c",
    "a@b..c",
    "a@.b",
    "a@-b",
    "a@b-",
    "a@b.",
    "a@b_c",
    "a..b@c",
    ".a@b",
    "a.@b",
    "-f@b",
    "a b@c",
    "a@b c",
    "<a@b>",
    '"a"@b',
    "a@b;c",
    "(a)@b",
    "a\u00e9@b",
    "a@b\n",
    "%s@b" % ("a" * 65),
    "a@%s" % ("b" * 64),
    "a@%s" % ".".join(["b" * 60] * 5),
)


@pytest.mark.parametrize("address", GOOD_EMAILS + BAD_EMAILS)
def test_the_schema_takes_the_addresses_that_the_grammar_takes(address):
    good = address in GOOD_EMAILS
    job = dict(full(), notification={"email": [address], "events": ["failure"]})
    assert VALIDATOR.is_valid(job) is good
    if address == address.strip():  # around an address of a task spaces do no harm
        assert (not errors(notification={"email": [address]})) is good


@given(
    st.builds(
        "{}@{}".format,
        st.text("abAB01.-!#$%&'*+/=?^_`{|}~", min_size=1, max_size=9),
        st.text("abAB01.-", min_size=1, max_size=9),
    ).filter(VALIDATOR.evolve(schema=EMAIL).is_valid)
)
def test_the_mail_library_takes_every_address_of_the_schema(address):
    assert not errors(notification={"email": [address]})
    mail = EmailMessage()
    mail["To"] = address
    assert [one.addr_spec for one in mail["To"].addresses] == [address]
    assert not mail["To"].defects


# --- copies ----------------------------------------------------------------------------------------------------


def resolved(*entries, **there):
    jobs, problems = _copies.resolve_all([("jobs[%d]." % n, one) for n, one in enumerate(entries)], there.get)
    return jobs, [str(problem) for problem in problems]


def test_a_copy_is_its_base_with_options_laid_over_it():
    there = full()
    (copy_of_it,), problems = resolved({"name": "copy", "copy_from": "old", "on_error": {"retries": 9}}, old=there)
    assert problems == []
    elements = [dict(one, previous_path=None) for one in there["elements"]]
    on_error = dict(there["on_error"], retries=9)
    assert elements != there["elements"]
    assert copy_of_it == dict(there, name="copy", on_error=on_error, elements=elements, accept_circular=None)
    # what it was before plays no part, nor does what becomes of omitted options
    again = {"name": "copy", "copy_from": "old", "on_error": {"retries": 9}, "omitted": "reset"}
    assert resolved(again, old=there, copy=made(name="copy", comment="else")) == ([copy_of_it], [])


def test_a_jitter_that_followed_from_the_schedule_of_the_base_follows_that_of_the_copy():
    nightly = made(name="old", schedule={"at": "02:30"})
    (job,), _problems = resolved({"name": "copy", "copy_from": "old", "schedule": {"every": "5m"}}, old=nightly)
    assert (nightly["schedule"]["jitter"], job["schedule"]["jitter"]) == ("15m", "30s")


def test_copies_in_a_list_follow_the_list_in_any_order():
    entries = [
        {"name": "c", "copy_from": "b"},
        {"name": "b", "copy_from": "a", "comment": "b"},
        base(name="a", comment="a"),
    ]
    jobs, problems = resolved(*entries, a=made(name="a", comment="not this one"))
    assert problems == []
    assert [(job["name"], job["comment"]) for job in jobs] == [("c", "b"), ("b", "b"), ("a", "a")]
    many = [base(name="a0"), *({"name": "a%d" % n, "copy_from": "a%d" % (n - 1)} for n in range(1, 3000))]
    assert len(resolved(*many[::-1])[0]) == 3000


@pytest.mark.parametrize(
    ("entries", "messages"),
    [
        (
            [{"name": "b", "copy_from": "lost"}],
            ["jobs[0].copy_from: 'lost' is no job of this scope on this server; declare it first, or name another one"],
        ),
        (
            [base(name="a"), {"name": "b", "copy_from": "b"}],
            ["jobs[1].copy_from: 'b' is this job itself; name another one, or leave it out"],
        ),
        (
            [{"name": "x", "copy_from": "a"}, {"name": "a", "copy_from": "b"}, {"name": "b", "copy_from": "a"}],
            [
                "jobs[1].copy_from: makes a circle of copies (a -> b -> a); "
                "give one of them options of its own instead",
            ],
        ),
        (
            [{"name": "b", "copy_from": "a"}, {"name": "a", "state": "absent"}],
            ["jobs[0].copy_from: 'a' is removed by the same task; name a job that stays"],
        ),
        (
            [{"name": "b", "copy_from": "a"}, {"name": "a"}],
            [
                "jobs[1].partner.host: is missing; name the partner server",
                "jobs[1].elements: is missing; give at least one element with its path",
            ],
        ),
    ],
)
def test_what_cannot_be_copied(entries, messages):
    there = made(name="a") if "absent" in str(entries) else None
    assert resolved(*entries, a=there)[1] == messages


def test_a_job_of_another_name_is_what_a_renamed_one_starts_from():
    there = full()
    (job,), problems = resolved({"name": "new", "previous_name": "old", "comment": "new"}, old=there)
    assert (problems, job) == ([], dict(there, name="new", comment="new"))
    # once it is renamed, the old name plays no part
    (again,), _problems = resolved({"name": "new", "previous_name": "old"}, old=there, new=job)
    assert again == job
    assert resolved(base(name="new", previous_name="old", omitted="reset"), old=there)[0] == [made(name="new")]
    assert resolved(base(name="new", previous_name="old"))[0] == [made(name="new")]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [base(name="a", previous_name="a")],
            "jobs[0].previous_name: 'a' is the name itself; leave it out",
        ),
        (
            [base(name="a"), base(name="b", previous_name="a")],
            "jobs[1].previous_name: 'a' is the name of another job of the same task; "
            "it can be given up or kept, do one of them",
        ),
        (
            [base(name="a", previous_name="b"), base(name="b", previous_name="a")],
            "jobs[0].previous_name: 'b' is the name of another job of the same task; "
            "it can be given up or kept, do one of them",
        ),
        (
            [base(name="a", previous_name="c"), base(name="b", previous_name="c")],
            "jobs[1].previous_name: 'c' is the previous name of 'a', too; a job is renamed once, leave one out",
        ),
        (
            [base(name="a", previous_name="c"), {"name": "b", "copy_from": "c"}],
            "jobs[1].copy_from: 'c' is renamed by the same task; name it 'a'",
        ),
    ],
)
def test_what_cannot_be_renamed(entries, message):
    assert resolved(*entries, c=made(name="c"))[1][0] == message


# --- properties ------------------------------------------------------------------------------------------------

DURATIONS = st.builds("{}{}".format, st.integers(1, 48), st.sampled_from("smhSMH"))
PERIODS = st.sampled_from([period for period in range(60, 86401) if _schedule.divides(period)]).map("{}s".format)
TIMES = st.builds("{}:{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
WORDS = st.text(
    st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp"), blacklist_characters="/"), min_size=1, max_size=20
)
PATHS = st.lists(WORDS.filter(lambda word: word not in (".", "..", ".serversync")), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)

SHARES = st.builds("{}{}%".format, st.integers(1, 100), st.sampled_from(["", " "]))
AMOUNTS = SHARES | st.integers(0, 10**9 - 1) | st.integers(0, 10**9 - 1).map("{:04}".format)
SIZES = st.builds("{}{}".format, st.integers(1, 1024), st.sampled_from("kmgtKMGT"))


UNITS = st.lists(
    st.builds(
        lambda name: {"unit": name}, st.from_regex(_job._UNIT_PATTERN, fullmatch=True).filter(lambda n: len(n) < 99)
    ),
    max_size=2,
    unique_by=lambda one: one["unit"],
)


@st.composite
def maybe(draw, **strategies):
    """A mapping with any of these keys: one in three is left out, and one in six null."""
    found = {}
    for name, one in strategies.items():
        kind = draw(st.integers(0, 5))
        if kind > 1:
            found[name] = draw(one) if kind > 2 else None
    return found


FLAGS = st.sampled_from(["yes", "no", True, False, 0, 1])
WHEN = st.one_of(
    st.builds(lambda one: {"every": one}, PERIODS),
    st.builds(
        lambda at, days: {"at": at, **days},
        st.lists(TIMES, min_size=1, max_size=4),
        st.one_of(
            st.builds(lambda days: {"days": days}, st.lists(st.sampled_from(_schedule.DAYS), max_size=9)),
            st.builds(lambda days: {"day_of_month": days}, st.lists(st.integers(1, 31), max_size=40)),
        ),
    ),
    st.builds(lambda one: {"calendar": one}, st.sampled_from(["daily", "Mon..Fri *-*-* 02:30", "*:0/7 UTC"])),
)
#: By their paths the options that are more than a choice, a flag or a number.
DRAWN = {
    "name": st.from_regex(_job.NAME_PATTERN, fullmatch=True),
    "comment": WORDS,
    "partner.host": st.just("hq"),
    "partner.host_key": st.lists(st.sampled_from([KEY, OTHER_KEY])),
    "account.user": st.sampled_from(["a", "b.c"]),
    "account.private_key_file": PATHS,
    "account.password": WORDS,
    # with one way of saying when
    "schedule.every": st.nothing(),
    "schedule.at": st.nothing(),
    "schedule.days": st.nothing(),
    "schedule.day_of_month": st.nothing(),
    "schedule.calendar": st.nothing(),
    "schedule.timezone": st.sampled_from(["UTC", "zulu", "Europe/Berlin"]),
    "schedule.jitter": st.builds("{}s".format, st.integers(0, 59)),
    "on_error.retries": st.integers(0, 100) | st.just("7"),
    "on_error.delay": DURATIONS.filter(lambda d: _schedule.seconds_of(d) <= 3600),
    "on_error.backoff": st.floats(1, 10) | st.integers(1, 10) | st.just("1.5"),
    "on_error.max_delay": st.sampled_from(["1h", "60m", "1d"]),
    "notification.email": st.lists(st.sampled_from(["a@b", "c@d.e"])),
    "notification.urls": st.lists(st.from_regex(_job._URL, fullmatch=True), max_size=3),
    # no schedule leaves as much
    "notification.late_after": st.sampled_from(["62d", "1488h", " 400 D"]),
    "settings.max_delete": AMOUNTS,
    "settings.max_change": AMOUNTS,
    "settings.include": st.lists(WORDS),
    "settings.exclude": st.lists(WORDS),
    "settings.keep_versions": DURATIONS,
    "settings.versions_max": SHARES | SIZES.filter(lambda size: size[-1] not in "kK"),
    "settings.bandwidth_limit": SIZES.filter(lambda size: size[-1] not in "tT"),
    "elements.path": PATHS,
    "elements.partner_path": PATHS,
    "elements.kind": st.sampled_from(["tree", "tree", "tree", "log"]),
    "elements.previous_path": PATHS,
    # of elements of the same job
    "elements.requires": st.nothing(),
    "before": UNITS,
    "after": UNITS,
    "limits.timeout": DURATIONS.filter(lambda d: _schedule.seconds_of(d) >= 60),
    "accept_circular": WORDS.filter(lambda words: words.strip().rstrip(".")),
}


def drawn(field, path=""):
    """How an option is drawn: as its kind says, or else DRAWN has to."""
    if path == "elements.settings":
        return drawn(_job.field_of("settings"), "settings")
    if path in DRAWN:
        return DRAWN[path]
    if field.kind == "mapping":
        parts = {
            part.name: drawn(part, ("%s.%s" % (path, part.name)).strip(".")) for part in field.parts if not part.option
        }
        return maybe(**{name: one for name, one in parts.items() if not one.is_empty})
    if field.element and field.element.parts:
        return st.lists(drawn(field.element, path), min_size=1, max_size=3)
    inner = field.element or field
    one = (
        st.sampled_from(inner.choices)
        if inner.choices
        else FLAGS
        if inner.kind == "flag"
        else st.integers(*inner.limits)
    )
    return st.lists(one) if field.element else one


JOBS, PARTNERS = drawn(_job.JOB), drawn(_job.field_of("partner"), "partner")


@st.composite
def declarations(draw):
    job = draw(JOBS)
    job["name"] = draw(DRAWN["name"])
    job["partner"] = dict(job.get("partner") or draw(PARTNERS), host="hq")
    if job.get("schedule") is not None:
        job["schedule"].update(draw(WHEN))
    job["elements"] = job.get("elements") or [{}]
    for number, element in enumerate(job["elements"]):
        element["path"] = element.get("path") or draw(PATHS)
        paths = [one["path"] for one in job["elements"][:number]]
        if paths:
            element.update(draw(maybe(requires=st.lists(st.sampled_from(paths)))))
    if job["partner"].get("connection") == "local":
        # both replicas are here, and nobody logs in
        job["account"] = None
        job["partner"].update(port=None, host_key=[])
        for number, element in enumerate(job["elements"]):
            element["partner_path"] = "/%d%s" % (number, draw(PATHS))
    return job


def spread(job):
    """The job with all that holds for an element given at the element; what null stands for can be at the job only."""
    elements = []
    for element in job["elements"]:
        log, sftp = element["kind"] == "log", job["partner"]["connection"] == "sftp"
        own = {name: one for name, one in _job.settings_of(job, element).items() if one is not None}
        left_out = [name for name in own if log and name not in ("direction", "owners")] + ["compress"] * sftp
        elements.append(dict(element, settings={name: one for name, one in own.items() if name not in left_out}))
    return dict(job, elements=elements)


def options(field, path=""):
    """Every option of a job by its path; what is none of the job says how a task is carried out."""
    for part in field.parts:
        if not part.option:
            where = ("%s.%s" % (path, part.name)).strip(".")
            yield where
            yield from options(part.element or part, where)


def said(field, value, path=""):
    """What of that a declaration has a value for."""
    for part in field.parts:
        one, where = value.get(part.name), ("%s.%s" % (path, part.name)).strip(".")
        if one is not None:
            yield where
            inner = part.element or part
            for entry in (one if part.element else [one]) if inner.parts else ():
                yield from said(inner, entry, where)


def test_the_jobs_that_are_drawn_have_every_option():
    found = set()

    @settings(max_examples=300, derandomize=True, database=None)
    @given(declarations())
    def look(declaration):
        found.update(said(_job.JOB, declaration))
        if not _job.declare(declaration)[1]:
            found.add(("declared", declaration["partner"].get("connection")))

    look()
    assert {("declared", one) for one in (None, *_job.field_of("partner.connection").choices)} - found == set()
    assert set(options(_job.JOB)) - found == set()


@settings(max_examples=200)
@given(declarations())
def test_the_normal_form_is_a_fixed_point(declaration):
    job, problems = _job.declare(declaration)
    assert wrong_places([declaration]) == []
    if problems:  # what the strategies cannot rule out: overlaps and patterns
        assert {problem.path.split("[")[0] for problem in problems} <= {
            "elements",
            "settings.include",
            "settings.exclude",
            "settings.delete",
            "settings.verify_every",
            "settings.preserve",
            "account.private_key_file",
            "account.password",
            "schedule.timezone",  # another one than at the end of the calendar expression
            "notification.urls",  # equal ones, and those of services on this server
            "notification.late_after",  # missing where there is no schedule, or a calendar
        }
        return
    given = _job.secrets_of(_job.read(declaration)[0])
    assert ("notification.urls" in given) == ("notification.urls" in _job.secrets_in(job))
    assert _job.normalise(job) == (job, [])
    assert _job.parse_document(_job.document_text(job)) == (job, [])
    assert _job.declare(declaration, job) == (job, [])
    assert _job.declare({"name": job["name"]}, job) == (job, [])
    # what sync_job_info returns, given back
    fields = {name: value for name, value in job.items() if name != "version"}
    for omitted in ("keep", "reset"):
        assert _job.declare(dict(fields, omitted=omitted), job) == (job, [])
    VALIDATOR.validate(job)
    assert _job.normalise(spread(job)) == (spread(job), [])
    # a copy, and the copy given back
    (copied,), problems = resolved({"name": "copy", "copy_from": "it"}, it=job)
    assert problems == []
    own = {"name": "copy", "accept_circular": None}
    assert dict(copied, elements=None) == dict(job, elements=None, **own)
    assert _job.normalise(copied) == (copied, [])
    # on a server, whose machine id is no part of what is declared
    document = _job.bound(job, MACHINE_ID)
    VALIDATOR.validate(document)
    assert _job.parse_document(_job.document_text(document)) == (document, [])
    assert list(document)[:3] == ["version", "machine_id", "name"]
    assert _job.bound(document, None) == job
    assert _job.declare(declaration, document) == (job, [])
    assert _job.declare({"name": job["name"]}, document) == (job, [])
    assert resolved({"name": "copy", "copy_from": "it"}, it=document) == ([copied], [])


@pytest.mark.parametrize(
    ("document", "here", "foreign"),
    [
        ({}, MACHINE_ID, False),
        ({}, None, False),
        ({"machine_id": MACHINE_ID}, MACHINE_ID, False),
        ({"machine_id": MACHINE_ID}, "f" * 32, True),
        ({"machine_id": MACHINE_ID}, None, True),
    ],
)
def test_which_documents_are_foreign(document, here, foreign):
    assert _job.foreign(document, here) is foreign


def test_a_machine_id_is_no_option():
    problems = _job.declare(dict(made(), machine_id=MACHINE_ID))[1]
    assert [problem.path for problem in problems if problem.code == "unknown_option"] == ["version", "machine_id"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def any_of(field):
    """Anything in the place of a field, and now and then something that looks like it."""
    parts = field.element.parts if field.element else field.parts
    inner = st.fixed_dictionaries({}, optional={part.name: any_of(part) for part in parts}) if parts else ANYTHING
    return ANYTHING | inner | st.lists(inner, max_size=3)


@settings(max_examples=300)
@given(st.fixed_dictionaries({}, optional={part.name: any_of(part) for part in _job.JOB.parts}))
def test_no_input_breaks_the_grammar(declaration):
    job, problems = _job.declare(declaration)
    if problems:
        for problem in problems:
            assert problem.path
            assert "; " in problem.text or "is not one of" in problem.text
    else:
        VALIDATOR.validate(json.loads(_job.document_text(job)))
        assert wrong_places([{name: one for name, one in declaration.items() if name not in _job.OF_THE_TASK}]) == []


def test_a_number_too_large_for_a_float_is_out_of_range():
    _given, problems = _job.read(base(on_error={"backoff": 10**400}))
    assert [problem.code for problem in problems] == ["out_of_range"]
