# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""Public host keys as OpenSSH writes them: their canonical spelling, their fingerprint, and whether they are pinned."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Mapping, Sequence

from ._job import HOST_KEY_LONGEST, Problem, Wrong, no_longer, one_of, pairings_of, show

#: Public key types of OpenSSH and how many strings a key of the type consists of.
KEY_TYPES = {
    "ssh-ed25519": 2,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "ssh-rsa": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}


def canonical(text: str) -> str:
    if "PRIVATE KEY" in text:
        raise Wrong("is a private key; give the public key and take the private one as known to others", "private_key")
    remedy = "write TYPE BASE64 as in /etc/ssh/ssh_host_ed25519_key.pub of the partner"
    words = text.split()
    if not words:
        raise Wrong("is empty; " + remedy)
    if words[0] not in KEY_TYPES:
        if len(words) > 1 and words[1] in KEY_TYPES:
            raise Wrong("has %s before the key type; leave it out" % show(words[0]))
        raise Wrong("%s is not a key type; use one of %s" % (show(words[0]), one_of(KEY_TYPES)))
    if len(words) < 2:
        raise Wrong("has no key after %s; %s" % (words[0], remedy))
    try:
        blob = base64.b64decode(words[1].encode("utf-8"), validate=True)
        strings = _key_strings(blob)
    except (binascii.Error, ValueError):
        raise Wrong("%s is cut off or damaged; %s" % (show(words[1]), remedy)) from None
    inner = strings[0].decode("ascii", "replace")
    if inner != words[0]:
        raise Wrong("says %s, but the key itself is of type %s; %s" % (words[0], show(inner), remedy))
    if len(strings) != KEY_TYPES[inner] or (inner == "ssh-ed25519" and len(strings[1]) != 32):
        raise Wrong("%s is cut off or damaged; %s" % (show(words[1]), remedy))
    key = "%s %s" % (inner, base64.b64encode(blob).decode("ascii"))
    no_longer(key, HOST_KEY_LONGEST)
    return key


def _key_strings(blob: bytes) -> list[bytes]:
    """The strings that a public key consists of (RFC 4251, section 5)."""
    strings = []
    while blob:
        size = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + size:
            raise ValueError("cut off")
        strings.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    if not strings:
        raise ValueError("empty")
    return strings


def fingerprint(key: str) -> str:
    """The SHA256 fingerprint of 'TYPE BASE64', as ssh-keygen -l prints it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def pin_problem(job: Mapping[str, Any], pairings: Sequence[Mapping[str, Any]]) -> Problem | None:
    """Whether partner.host_key contradicts the pairing that the job belongs to.

    `pairings`: mappings with name, host and keys ('TYPE BASE64' lines).
    """
    given = job["partner"]["host_key"]
    named = pairings_of(job["partner"]["host"], pairings)
    if not named or not given:
        return None
    pairing = named[0]
    strangers = [key for key in given if key not in pairing["keys"]]
    if not strangers:
        return None
    pinned = one_of(fingerprint(key) for key in pairing["keys"]) or "none"
    offered = one_of(fingerprint(key) for key in strangers)
    text = "is not the key pinned for pairing %s (%s pinned, %s given); " % (pairing["name"], pinned, offered)
    text += "re-pair with the role if the server's key was changed on purpose"
    return Problem("host_key_mismatch", "partner.host_key", text)
