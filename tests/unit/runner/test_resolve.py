# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from serversync.failure import Failure
from serversync.job import Job
from serversync.resolve import find

# Each server has of both what the other one has at its place.
CROSSED = [("/srv/one", "/srv/two"), ("/srv/two", "/srv/one"), ("/srv/all", "/srv/all/site")]


def job(*paths: tuple[str, str]) -> Job:
    elements = [{"path": path, "partner_path": partner_path} for path, partner_path in paths]
    return Job({"name": "nightly", "elements": elements, "settings": {}}, "")


@pytest.mark.parametrize(
    ("path", "element", "below"),
    [
        ("/srv/here/plc/s7", "/srv/here", b"plc/s7"),
        ("/srv/there/plc/", "/srv/here", b"plc"),
        ("/srv/here", "/srv/here", b""),
        ("/srv/hereafter/x", "/srv/hereafter", b"x"),
    ],
)
def test_a_whole_path_is_one_of_either_server(path: str, element: str, below: bytes) -> None:
    found = find(job(("/srv/here", "/srv/there"), ("/srv/hereafter", "/srv/same")), path, None)
    assert (found[0].path, found[1]) == (element, below)


def test_the_same_path_on_both_servers_is_one() -> None:
    assert find(job(("/srv/same", "/srv/same")), "/srv/same/x", None)[1] == b"x"


@pytest.mark.parametrize("path", ["/srv/one/plc", "/srv/two/plc", "/srv/all/site/plc", "plc"])
def test_what_may_be_one_of_two_is_asked_back(path: str) -> None:
    with pytest.raises(Failure) as caught:
        find(job(*CROSSED), path, None)
    assert caught.value.code == "ambiguous"
    assert "--element" in caught.value.message


def test_a_chosen_element_leaves_one() -> None:
    assert find(job(*CROSSED), "/srv/one/plc", ["/srv/one"])[1] == b"plc"
    assert find(job(*CROSSED), "site/plc", ["/srv/all"])[1] == b"site/plc"
