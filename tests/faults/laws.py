# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The laws, each as a check of what was observed; what breaks one comes back as a sentence.

L8 (reconciliation is pure, deterministic, symmetric) is checked where reconciliation is alone; L10 (clocks) is all
others under a wrong clock; L11 (an interrupted run ends as an undisturbed one) is the comparison with model.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from tests.faults.observe import Node, State, Tree, copy_of, is_copy, look, short

# Bytes of an observed content.
DIGEST = 16


def kept(before: State, after: State, taken: Collection[bytes] = ()) -> list[str]:
    """L1: each content that was live is afterwards at its path, in a conflict copy, or in versions of that replica.

    taken: contents (digests) that users overwrote or removed themselves meanwhile.
    """
    lost = []
    for (side, old, _old_versions), (_side, new, versions) in zip(before.sides(), after.sides(), strict=True):
        copies = [(path, node.content) for path, node in new.items() if any(map(is_copy, path.split(b"/")))]
        for path, node in old.items():
            if node.kind not in "fl" or (node.kind == "f" and not node.size) or node.content in taken:
                continue
            now = new.get(path)
            if now is not None and now.data == node.data:
                continue
            if node.content in versions.get(path, ()):
                continue
            if any(node.content == data and copy_of(copy, path) for copy, data in copies):
                continue
            lost.append(f"L1: {side}: the content of {path!r} ({node.size} bytes) is gone")
    return lost


def whole(after: State, known: Collection[bytes]) -> list[str]:
    """L2: every content, live or kept, is one that somebody wrote as a whole. known: digests."""
    mixed = []
    for side, tree, versions in after.sides():
        found = [(path, node.content) for path, node in tree.items() if node.kind == "f"]
        # Versions have links' texts among their contents, which are no digests and in nobody's way here.
        found += [(path, data) for path, all_of_it in versions.items() for data in all_of_it if len(data) == DIGEST]
        mixed += [f"L2: {side}: {path!r} is a content that nobody wrote" for path, data in found if data not in known]
    return mixed


def claims(rows: Iterable[Any], trees: Mapping[str, bytes]) -> list[str]:
    """L3: where a replica still is as the archive's agreed row says on both sides, both have the same content.

    rows: of the runner's own archive, which alone can read it; trees: the roots of here and there.
    """
    wrong = []
    for row in rows:
        if row.status != "agreed" or row.here is None or row.there is None:
            continue
        nodes = []
        for record, root in ((row.here, trees["here"]), (row.there, trees["there"])):
            path = os.path.join(root, row.path)
            if not os.path.lexists(path):
                break
            info = os.lstat(path)
            kind, inode, ctime = record.split(b" ")[:3]
            stamp = b"%d.%09d0" % divmod(info.st_ctime_ns, 10**9)
            if (b"%d" % info.st_ino, stamp) != (inode, ctime):
                break
            node = look(path)
            if node is None or node.kind != kind.decode():
                break
            nodes.append(node)
        if len(nodes) == 2 and nodes[0].data != nodes[1].data:
            wrong.append(f"L3: the archive says that {row.path!r} has agreed, and both are as it says, but they differ")
    return wrong


def idle(before: State, after: State, record: Mapping[str, Any]) -> list[str]:
    """L4: a run with nothing to do transfers nothing and touches nothing: inodes and change times are as they were."""
    touched = []
    for (side, old, kept_before), (_side, new, kept_after) in zip(before.sides(), after.sides(), strict=True):
        touched += [
            f"L4: {side}: {path!r} was touched without need"
            for path in sorted({*old, *new})
            if old.get(path) != new.get(path) and not pruned(old.get(path), new.get(path))
        ]
        if kept_before != kept_after and set(kept_after) - set(kept_before):
            touched.append(f"L4: {side}: versions were made without need")
    for element in record.get("elements", []):
        told = {name: element[name] for name in ("created", "updated", "deleted", "bytes") if element.get(name)}
        if element["state_after"] == "failed":
            # What cannot be put in its place has to come before anybody knows.
            told.pop("bytes", None)
        if told:
            touched.append(f"L4: the record of a run with nothing to do says {told}")
    return touched


def pruned(before: Node | None, after: Node | None) -> bool:
    """Whether nothing has moved but that another name of the file, among the versions, has had its time."""
    if before is None or after is None or before.nlink <= after.nlink:
        return False
    return before == after._replace(nlink=before.nlink, ctime=before.ctime)


def converged(after: State, standing: Callable[[bytes], bool], owners: bool = True) -> list[str]:
    """L5: at rest both sides agree but for what stands: kept, left, unresolved, or excluded."""

    def alike(one: Node | None, other: Node | None) -> bool:
        if one is None or other is None:
            return False
        first, second = one.whole, other.whole
        if not owners:
            first, second = drop_owner(one), drop_owner(other)
        return first == second

    return [
        f"L5: {path!r} differs and nothing says why: {short(after.here.get(path))}, {short(after.there.get(path))}"
        for path in sorted({*after.here, *after.there})
        if not alike(after.here.get(path), after.there.get(path)) and not standing(path)
    ]


def drop_owner(node: Node) -> tuple[object, ...]:
    mode, _owner, xattrs = node.metadata
    return node.data, (mode, xattrs), node.time


def deletions(
    agreed: Mapping[bytes, tuple[Node, Node]],
    before: State,
    after: State,
    may: Callable[[bytes, str], bool],
    visible: Callable[[Tree], Tree],
) -> list[str]:
    """L6: what a run deleted was as archived on that side, and absent on the other.

    agreed: path -> its nodes here and there when they last agreed; may(path, side): whether the settings allow more
    (extraneous, or a rule by which the deletion wins); visible: a tree as a run sees it, to which a directory that
    holds nothing but excluded files is absent.
    """
    wrong = []
    for index, ((side, old, _old_versions), (_side, new, _new_versions)) in enumerate(
        zip(before.sides(), after.sides(), strict=True)
    ):
        other = visible(before.sides()[1 - index][1])
        copies = [(path, node.data) for path, node in new.items() if any(map(is_copy, path.split(b"/")))]
        for path, node in old.items():
            if path in new or may(path, side):
                continue
            if any(node.data == data and copy_of(copy, path) for copy, data in copies):
                # Put aside by a run that did not come to putting the other version in its place.
                continue
            pair = agreed.get(path)
            if pair is None:
                wrong.append(f"L6: {side}: {path!r} was deleted although it had never agreed")
            elif pair[index].whole != node.whole:
                wrong.append(f"L6: {side}: {path!r} was deleted although it had changed since")
            elif path in other:
                wrong.append(f"L6: {side}: {path!r} was deleted although the other side has it")
    return wrong


def untouched(before: State, after: State, why: str) -> list[str]:
    """L7: a run that a guard stopped has changed nothing."""
    changed = []
    for (side, old, _old_versions), (_side, new, _new_versions) in zip(before.sides(), after.sides(), strict=True):
        changed += [
            f"L7: {side}: {path!r} moved although {why}" for path in {*old, *new} if old.get(path) != new.get(path)
        ]
    return changed


def inside(before: Mapping[bytes, tuple[int, ...]], after: Mapping[bytes, tuple[int, ...]]) -> list[str]:
    """L9: what lies outside the roots is as it was, down to its change times."""
    return [
        f"L9: {path!r} outside the roots was touched"
        for path in {*before, *after}
        if before.get(path) != after.get(path)
    ]


def states(record: Mapping[str, Any], after: State, excluded: Callable[[bytes], bool], owners: bool) -> list[str]:
    """A state is true: equal means equal, and every failure and difference says what it is about."""
    wrong = []
    for element in record.get("elements", []):
        state = element.get("state_after")
        if state == "equal":
            # In one direction the target may have more; those are "left", and then the state is not plainly equal.
            wrong += [text.replace("L5", "state equal") for text in converged(after, excluded, owners)]
        if state in ("failed",) and not (element.get("error") or record.get("error")):
            wrong.append(f"state {state} without an error that says why")
    return wrong
