# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What servers may tell of themselves for a page of reports: an ordinary fleet, names of all kinds, many jobs, none."""

from __future__ import annotations

import random
from datetime import date, datetime, timedelta
from typing import Any

Server = dict[str, Any]
MADE = "2026-11-27T14:11:05+01:00"
SETTINGS = {"direction": "to_partner", "delete": "never", "max_delete": "25%", "max_change": None}
FAILED = "connection refused by hq:22; look into sshd, the network and the firewall there"


def on_day(back: int, **counts: Any) -> dict[str, Any]:
    """A day so many before the report was made."""
    return {"day": (date.fromisoformat(MADE[:10]) - timedelta(days=back)).isoformat(), **counts}


def run(back: int = 0, state: str = "equal", **more: Any) -> dict[str, Any]:
    began = datetime.fromisoformat(MADE).replace(hour=2, minute=30, second=0) - timedelta(days=back)
    return {
        "run": f"{began:%Y%m%dT%H%M%SZ}-4f1c",
        "trigger": "schedule",
        "configuration": 3,
        "state": state,
        "started": began.isoformat(),
        "seconds": 74.25,
        "attempts": 1,
        "copied": 12,
        "deleted": 0,
        "bytes": 7_340_032,
        "conflicts": 0,
        "error": FAILED if state == "failed" else None,
        **more,
    }


def element(path: str, partner_path: str | None = None, state: str | None = "equal", **settings: Any) -> dict[str, Any]:
    """One that is told of and, with its settings, declared."""
    partner_path = partner_path or path
    direction = settings.get("direction", "to_partner")
    own = {**SETTINGS, **settings}
    told = {"path": path, "partner_path": partner_path, "direction": direction, "state": state}
    return {"told": told, "declared": {"path": path, "partner_path": partner_path, "kind": "tree", "settings": own}}


def job(name: str, partner: str = "hq", *elements: dict[str, Any], **more: Any) -> dict[str, Any]:
    elements = elements or (element("/srv/line1/programs"),)
    declared = {
        "partner": {"host": partner, "port": 22, "connection": "ssh"},
        "every": None,
        "accept_circular": more.pop("accept_circular", None),
        "elements": [one["declared"] for one in elements],
    }
    return {
        "job": name,
        "comment": "",
        "partner": f"{partner}:22",
        "state": "equal",
        "problem": None,
        "enabled": True,
        "schedule": "at 02:30",
        "next": "2026-11-28T02:30:00+01:00",
        "retry": None,
        "good": "2026-11-27T02:31:14+01:00",
        "elements": [one["told"] for one in elements],
        "guards": [],
        "plan": None,
        "unresolved": 0,
        "conflicts": [],
        "runs": [run(back) for back in range(5)],
        "days": [],
        "declared": declared,
        **more,
    }


def server(name: str, *jobs: dict[str, Any], **more: Any) -> Server:
    return {
        "server": name,
        "aliases": [],
        "machine": f"machine of {name}",
        "scope": "system",
        "runner": "0.1.0",
        "made": MADE,
        "partners": [],
        "jobs": [*jobs],
        **more,
    }


def conflict(path: str, element: str = "/srv/line1/programs", **more: Any) -> dict[str, Any]:
    return {
        "element": element,
        "path": path,
        "this_server": "file, 18231 bytes, 2026-11-26 16:02:11, mode 664, 1000:1000",
        "partner": "file, 18190 bytes, 2026-11-26 15:47:30, mode 664, 1000:1000",
        "reason": "changed on both servers",
        **more,
    }


def days(seed: int, runs: int = 1, trouble: float = 0.03, since: int = 89) -> list[dict[str, Any]]:
    """Days up to the last, of which some did not go well."""
    chance = random.Random(seed)
    found = []
    for back in reversed(range(since + 1)):
        if runs == 1 and chance.random() < 0.02:
            continue
        one = {"equal": runs}
        if chance.random() < trouble:
            state = chance.choice(["failed", "failed", "different", "skipped", "equal_with_warnings"])
            one = {"equal": runs - 1, state: 1} if runs > 1 else {state: 1}
        longest = round(60 + 40 * chance.random() + (600 if chance.random() < 0.03 else 0), 1)
        moved = {
            "copied": chance.randrange(40),
            "bytes": int(chance.random() ** 4 * 3e9),
            "deleted": chance.randrange(3),
        }
        found.append(on_day(back, **one, longest=longest, seconds=longest * runs * 0.6, **moved))
    return found


def site() -> Server:
    """One server with jobs in all states."""
    programs = job(
        "line1-programs",
        "hq",
        element("/srv/line1/programs", "/srv/sites/site-a/programs", "failed"),
        element("/srv/line1/recipes", "/srv/sites/site-a/recipes", direction="both"),
        comment="Nightly copy of the line 1 programs",
        state="failed",
        good="2026-11-24T02:31:14+01:00",
        runs=[run(0, "failed", attempts=4, copied=0, bytes=0), run(1, "failed", attempts=4), run(2, "failed"), run(3)],
        days=[
            *days(1, trouble=0.05)[:-3],
            *(on_day(back, failed=1, longest=912.0, seconds=912.0) for back in (2, 1, 0)),
        ],
    )
    conflicts = [
        conflict("plc/s7/main.awl"),
        conflict(
            "plc/s7/blocks/ob1.awl", this_server="absent", reason="deleted on this server, changed on the partner"
        ),
        conflict("hmi/screens/übersicht (alt).xml", reason="different, never agreed"),
    ]
    recipes = job(
        "line2-recipes",
        "hq",
        element("/srv/line1/programs", "/srv/line2/recipes", "different", direction="both"),
        state="different",
        unresolved=3,
        conflicts=conflicts,
        runs=[run(back, "different", trigger="manual" if back == 1 else "schedule") for back in range(4)],
        days=[*days(2)[:-6], *(on_day(back, different=1, longest=70.0, seconds=70.0) for back in range(5, -1, -1))],
    )
    guarded = job(
        "archive",
        "dr.example.com",
        element("/srv/archive", None, "different", delete="synced"),
        state="different",
        guards=[{"element": "/srv/archive", "text": "8120 of 9000 paths would be deleted, max_delete allows 25%"}],
        plan="3f9a0c1b7d22",
        days=days(3, trouble=0.0),
    )
    back = job(
        "back",
        "hq",
        element("/srv/line1/programs", "/srv/sites/site-a/programs", direction="from_partner"),
        state="equal",
        days=days(4, runs=96, trouble=0.1),
        schedule="every 15m",
    )
    waiting = job("line3-programs", "hq", element("/srv/line3"), state="waiting", retry="2026-11-27T14:20:00+01:00")
    waiting["runs"] = [run(0, "waiting", error=FAILED, seconds=None), *waiting["runs"]]
    return server(
        "site-a",
        programs,
        recipes,
        guarded,
        back,
        {**waiting, "days": days(5)},
        job("reports", "hq", element("/srv/reports"), state="equal_with_warnings", days=days(6, trouble=0.2)),
        job("logs", "nas", element("/var/log/line1"), state="running", days=days(7, runs=24)),
        job("old", "hq", element("/srv/old"), enabled=False, days=days(8)[:30]),
        job("new", "hq", element("/srv/new", None, None), state=None, good=None, runs=[], days=[]),
        job(
            "broken",
            state="invalid",
            problem="/etc/serversync/jobs/broken.json: is not JSON",
            declared=None,
            elements=[],
            runs=[],
        ),
        job(
            "line4",
            "hq",
            element("/srv/line4"),
            state="skipped",
            days=days(9),
            runs=[run(0, "skipped", error="another run of this job is on; this one was skipped")],
        ),
    )


def fleet(sites: int = 3) -> list[Server]:
    """Sites, headquarters, a copy of it elsewhere, and one that nobody can reach."""
    found = [site()]
    for number in range(1, sites):
        name = f"site-{chr(97 + number)}"
        jobs = [
            job(
                f"line{line}-programs",
                "hq",
                element(f"/srv/line{line}/programs", f"/srv/sites/{name}/line{line}"),
                days=days(100 * number + line),
            )
            for line in (1, 2, 3)
        ]
        found.append(server(name, *jobs))
    away = job("sites-away", "dr.example.com", element("/srv/sites", delete="synced"), days=days(999, trouble=0.01))
    found.append(server("hq", away))
    found.append(
        server(
            "dr", job("back", "hq", element("/srv/sites", state="equal"), days=days(998)), aliases=["dr.example.com"]
        )
    )
    found.append(
        {
            "server": "site-z",
            "problem": "Failed to connect to the host via ssh: connect to host site-z port 22: No route to host",
        }
    )
    return found


# Names as nobody gives them, and as somebody who is hostile may.
NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><b>&amp;",
    "new\nline\ttab\x1b[31mred\x00",
    "\u202eltr\u202c override",
    "שלום עולם/ملف/עברית.txt",
    "漢字/テスト/日本語のとても長いファイル名" * 4,
    "undecodable \udcff\udcfe",
    "long/" * 200 + "end",
    "unbroken" * 100,
    "'quoted' $(rm -rf /) `x` ; | & -",
    "--use",
    "🙂 emoji 👩‍👩‍👧",
    "",
)


def nasty() -> list[Server]:
    jobs = [
        job(
            name or "empty",
            name,
            element(f"/srv/{name}", f"/srv/{name}/there", "different"),
            comment=name,
            state="different" if number % 2 else "failed",
            schedule=name,
            unresolved=2,
            conflicts=[
                conflict(name, f"/srv/{name}", this_server=name, partner=name, reason=name),
                conflict("x", this_server=None, partner=None, reason=None),
            ],
            guards=[{"element": name, "text": name}],
            plan=name,
            runs=[run(0, "failed", error=name, trigger=name), run(1, name)],
            days=days(number, trouble=0.5),
            problem=None,
        )
        for number, name in enumerate(NASTY)
    ]
    return [server(NASTY[0], *jobs), server(NASTY[5], *jobs), {"server": NASTY[8], "problem": NASTY[1]}]


def many(number: int = 1000, servers: int = 20) -> list[Server]:
    found = []
    for at in range(servers):
        jobs = [
            job(
                f"job{at:02}-{one:03}",
                "hq",
                element(f"/srv/data/{one}", f"/srv/sites/{at}/{one}"),
                days=days(at * 1000 + one, runs=24),
                state="failed" if (at * 50 + one) % 97 == 0 else "equal",
            )
            for one in range(number // servers)
        ]
        found.append(server(f"server-{at:02}", *jobs))
    return found
