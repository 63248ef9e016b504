# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job as systemd units, byte for byte."""

from __future__ import annotations

import pytest
from ansible_collections.serversync.core.plugins.module_utils import _job, _units
from hypothesis import given
from hypothesis import strategies as st


def job(**more):
    declaration = {"name": "demo", "partner": {"host": "hq"}, "elements": [{"path": "/srv/a"}, {"path": "/srv/b c"}]}
    declaration.update(more)
    made, problems = _job.declare(declaration)
    assert problems == []
    return made


def test_the_timer():
    schedule = {"at": ["02:30", "14:00"], "days": "mon", "timezone": "Europe/Berlin", "jitter": "5m"}
    assert _units.timer_text(job(schedule=schedule)) == (
        "# Written by serversync.core.sync_job; changes made here are lost.\n"
        "[Unit]\n"
        "Description=Schedule of synchronization job demo\n"
        "\n"
        "[Timer]\n"
        "OnCalendar=Mon *-*-* 02:30:00 Europe/Berlin\n"
        "OnCalendar=Mon *-*-* 14:00:00 Europe/Berlin\n"
        "Persistent=true\n"
        "RandomizedDelaySec=300s\n"
        "FixedRandomDelay=true\n"
        "AccuracySec=1s\n"
        "\n"
        "[Install]\n"
        "WantedBy=timers.target\n"
    )
    assert "Persistent=false\n" in _units.timer_text(job(schedule={"every": "1h", "catch_up": False}))


@pytest.mark.parametrize("more", [{}, {"schedule": {"every": "1h"}, "enabled": False}])
def test_no_timer_without_a_schedule_or_when_paused(more):
    assert _units.timer_text(job(**more)) is None


def test_the_drop_in():
    assert _units.drop_in_text(job(comment="100% of it")) == (
        "# Written by serversync.core.sync_job; changes made here are lost.\n"
        "[Unit]\n"
        "Description=Synchronization job demo: 100%% of it\n"
        "\n"
        "[Service]\n"
        "ReadOnlyPaths=-/srv/a\n"
        'ReadOnlyPaths="-/srv/b c"\n'
        "InaccessiblePaths=-/etc/gshadow\n"
        "InaccessiblePaths=-/etc/gshadow-\n"
        "InaccessiblePaths=-/etc/security/opasswd\n"
        "InaccessiblePaths=-/etc/shadow\n"
        "InaccessiblePaths=-/etc/shadow-\n"
        "InaccessiblePaths=-/etc/ssh/ssh_host_ecdsa_key\n"
        "InaccessiblePaths=-/etc/ssh/ssh_host_ed25519_key\n"
        "InaccessiblePaths=-/etc/ssh/ssh_host_rsa_key\n"
        "InaccessiblePaths=-/var/lib/systemd/credential.secret\n"
    )


def services(made, files=()):
    """All but what is hidden from every job."""
    lines = _units.drop_in_text(made, files).split("[Service]\n")[1].splitlines()
    return [line for line in lines if not line.startswith("InaccessiblePaths=")]


@pytest.mark.parametrize(
    ("more", "seen"),
    [
        ({"elements": [{"path": "/etc/shadow"}]}, {"/etc/shadow"}),
        ({"elements": [{"path": "/etc/ssh"}]}, {path for path in _units.SECRETS if "/ssh/" in path}),
        ({"elements": [{"path": "/etc/ssh/ssh_host_rsa_key", "kind": "log"}]}, {"/etc/ssh/ssh_host_rsa_key"}),
        ({"elements": [{"path": "/etc/ss"}, {"path": "/etc/motd"}]}, set()),
        ({"account": {"private_key_file": "/etc/ssh/ssh_host_rsa_key"}}, {"/etc/ssh/ssh_host_rsa_key"}),
    ],
)
def test_what_no_run_needs_is_hidden_but_for_what_this_one_does(more, seen):
    hidden = {path for path in _units.SECRETS if f"InaccessiblePaths=-{path}\n" in _units.drop_in_text(job(**more))}
    assert set(_units.SECRETS) - hidden == seen


def test_who_may_write_where():
    from_partner = job(settings={"direction": "from_partner"})
    assert services(from_partner) == ["ReadWritePaths=-/srv/a", 'ReadWritePaths="-/srv/b c"']
    assert services(from_partner, ["/srv/a", "/srv/b c"]) == ["ReadWritePaths=-/srv"]
    local = {"partner": {"host": "x", "connection": "local"}, "elements": [{"path": "/a", "partner_path": "/b"}]}
    assert services(job(**local)) == ["ReadOnlyPaths=-/a", "ReadWritePaths=-/b"]
    local["settings"] = {"direction": "from_partner"}
    assert services(job(**local)) == ["ReadOnlyPaths=-/b", "ReadWritePaths=-/a"]
    local["settings"] = {"direction": "both"}
    assert services(job(**local)) == ["ReadWritePaths=-/a", "ReadWritePaths=-/b"]
    assert services(job(settings={"direction": "both"})) == ["ReadWritePaths=-/srv/a", 'ReadWritePaths="-/srv/b c"']


def test_each_element_is_read_or_written_as_its_own_direction_says():
    elements = [
        {"path": "/a", "partner_path": "/copies/a"},
        {"path": "/b", "partner_path": "/copies/b", "settings": {"direction": "from_partner"}},
        {"path": "/c", "partner_path": "/copies/c", "settings": {"direction": "both", "delete": "synced"}},
        {"path": "/logs/d", "partner_path": "/logs/e", "kind": "log", "settings": {"direction": "from_partner"}},
    ]
    assert services(job(elements=elements)) == [
        "ReadOnlyPaths=-/a",
        "ReadWritePaths=-/b",
        "ReadWritePaths=-/c",
        "ReadWritePaths=-/logs",
    ]
    assert services(job(partner={"host": "x", "connection": "local"}, elements=elements)) == [
        "ReadOnlyPaths=-/a",
        "ReadOnlyPaths=-/copies/b",
        "ReadWritePaths=-/b",
        "ReadWritePaths=-/c",
        "ReadWritePaths=-/logs",
        "ReadWritePaths=-/copies/a",
        "ReadWritePaths=-/copies/c",
    ]


def test_one_file_never_opens_the_whole_file_system():
    made = job(settings={"direction": "from_partner"}, elements=[{"path": "/file"}])
    assert services(made, ["/file"]) == ["ReadWritePaths=-/file"]


def test_of_a_log_the_directory_is_open_where_it_is_written_and_nothing_is_mounted_where_it_is_read():
    logs = [{"path": "/logs/a", "partner_path": "/copies/a", "kind": "log"}]
    made = {"partner": {"host": "x", "connection": "local"}, "elements": logs}
    assert services(job(**made)) == ["ReadWritePaths=-/copies"]
    assert services(job(settings={"direction": "from_partner"}, **made)) == ["ReadWritePaths=-/logs"]


def test_who_is_killed_before_its_units_after_the_run_leaves_them_to_systemd():
    units = {"before": [{"unit": "a.service"}], "after": [{"unit": "b.service"}]}
    assert services(job(**units))[-1] == "ExecStopPost=+/usr/bin/serversync died %i"
    assert services(job(scope="user", **units)) == ["ExecStopPost=%h/.local/bin/serversync died %i"]
    assert "Exec" not in _units.drop_in_text(job(before=units["before"]))


def test_limits_of_a_run_and_a_backstop_for_one_that_cannot_end_itself():
    limited = {"limits": {"timeout": "2h", "nice": 10}, "on_error": {"retries": 3, "delay": "5m"}}
    # in system scope the unit ends with each attempt, and the waits are nobody's
    for scope, seconds in (("system", 7200 + 600), ("user", 4 * 7200 + 300 + 600 + 1200 + 600)):
        lines = services(job(scope=scope, **limited))
        counted = ["TimeoutStartSec=%ds" % seconds, "NotifyAccess=main", "Environment=SERVERSYNC_LONGEST=%d" % seconds]
        assert lines[-4:] == ["Nice=10", *counted]
    # how long the units of others take nobody knows
    for name in ("before", "after"):
        assert "Timeout" not in _units.drop_in_text(job(**limited, **{name: [{"unit": "a.service"}]}))


def test_user_jobs_have_no_sandbox():
    assert "[Service]" not in _units.drop_in_text(job(scope="user"))


def split_words(value: str) -> list[str]:
    """How systemd reads a list of paths: words, quotes, a backslash takes the next character, then % specifiers."""
    words, word, quote, started = [], "", "", False
    characters = iter(value)
    for char in characters:
        if char == "\\":
            word, started = word + next(characters), True
        elif quote:
            word, quote = (word, "") if char == quote else (word + char, quote)
        elif char in "\"'":
            quote, started = char, True
        elif char in " \t\n\r":
            words, word, started = ([*words, word] if started else words), "", False
        else:
            word, started = word + char, True
    assert not quote
    words = [*words, word] if started else words
    assert all("%" not in one.replace("%%", "") for one in words)
    return [one.replace("%%", "%") for one in words]


@pytest.mark.parametrize("path", ["/a b", "/a'b", '/a"b', "/a\\b", "/a%h", "/a\\", "/$HOME", "/;x", "/a\u00e9"])
def test_odd_paths_come_out_as_they_went_in(path):
    assert split_words(_units.path_value(path)) == ["-" + path]


@given(st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1))
def test_any_path_comes_out_as_it_went_in(text):
    assert split_words(_units.path_value("/" + text)) == ["-/" + text]


@given(st.text(st.characters(blacklist_categories=("Cc", "Cs"))))
def test_a_comment_never_leaves_its_line(text):
    value = _units.description_value(text)
    assert (len(value) - len(value.rstrip("\\"))) % 2 == 0
    assert "%" not in value.replace("%%", "")
