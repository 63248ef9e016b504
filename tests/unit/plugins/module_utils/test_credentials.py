# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets as they are kept."""

from __future__ import annotations

import os

from ansible_collections.serversync.core.plugins.module_utils import _credentials, _store

SYSTEM = _store.layout("system", "demo", {"HOME": "/root", "XDG_CONFIG_HOME": "/x"})


def test_what_cannot_be_decrypted_is_no_password(tmp_path):
    place = SYSTEM._replace(config=str(tmp_path))
    os.makedirs(place.credentials)
    plain, encrypted = (place.credential("account.password", one) for one in (False, True))
    for path in (plain, encrypted):
        with open(path, "wb") as stream:
            stream.write(b"bl\xffob" if path == plain else b"blob")
    asked = []

    def run(code, out):
        return lambda argv: asked.append(argv) or (code, out, "")

    read = _credentials.read_credentials(place, run(0, "s3cret"))
    assert (read[encrypted].data, read[plain].data) == (b"s3cret", b"")
    assert asked == [["systemd-creds", "decrypt", "--name=account.password", encrypted, "-"]]
    for code, out in ((1, ""), (0, "\udcff")):
        assert _credentials.read_credentials(place, run(code, out))[encrypted].data == b""
