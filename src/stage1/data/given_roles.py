"""Roles that the data bring (folders, a column or splits called train, val, test): mapped by `data.roles`, or refused.

They are never classes and never pooled in silence. A value of `data.roles` that names several roles
(val_select+val_calib) is a pool: the split cuts it among these roles, by group; what is checked across given roles is
checked across pools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from stage1.errors import DataError
from stage1.scores import ROLES

LEFT_OUT = "none"
ROLE_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout"),
}
# What may be beside such a word and changes nothing: train2017, test_set, seg_train, valImages.
_FILLERS = ("set", "split", "data", "dataset", "image", "images", "img", "imgs", "folder", "dir", "seg", "subset")
_WRAPPERS = ("images", "imgs", "data")


def role_kinds(names: Collection[str]) -> dict[str, str | None]:
    """Name -> "train", "val" or "test" where it means such a part of the data, in any case; None for others.

    One word of ROLE_WORDS, or a role's own name. Digits, signs and words like set, split, data, images beside it do not
    count, and no word that all the names share (roads_train, roads_test).
    """
    words = {name: _words(name) for name in names}
    shared = set.intersection(*map(set, words.values())) if len(words) > 1 else set()
    known = {word: kind for kind, alike in ROLE_WORDS.items() for word in alike}
    kinds: dict[str, str | None] = {}
    for name, found in words.items():
        plain = _as_ours(name)
        telling = [word for word in found if word in known or word not in shared]
        if plain in ROLES:
            kinds[name] = {"train": "train", "val_test": "test"}.get(plain, "val")
        else:
            kinds[name] = known.get(telling[0]) if len(telling) == 1 else None
    return kinds


def _as_ours(name: str) -> str:
    """A name as our roles are written: Val-Select, val select and ValSelect are val_select."""
    spaced = re.sub("([a-z])([A-Z])", r"\1 \2", name.strip())
    return re.sub(r"[-_\s]+", "_", spaced.lower())


def _words(name: str) -> list[str]:
    spaced = re.sub("([a-z])([A-Z])", r"\1 \2", name)
    words = re.findall("[a-z]+", re.sub("hold[-_ ]out", "holdout", spaced.lower()))
    cut = [word if word in _FILLERS else word.removesuffix("set") for word in words]
    return [word for word in cut if word not in _FILLERS]


def pools_of(names: Iterable[str], mapping: Mapping[str, str], where: str, what: str, otherwise: str) -> dict[str, str]:
    """Distinct name -> its role or pool ("val_select+val_calib"), or "none": left out. "" stays "".

    mapping: data.roles. Without it the names have to be roles, in any case. what: how the names are called in messages.
    otherwise:
    what else the user can do. Raises DataError with the line to write.
    """
    found = [name for name in dict.fromkeys(names) if name]
    if not mapping:
        if wrong := [name for name in found if _as_ours(name) not in ROLES]:
            raise DataError(
                f"{where}: {what} {wrong[0]!r} is no role of a run ({', '.join(ROLES)}); say which it is:"
                f" {suggested(found)}{otherwise}"
            )
        return {"": "", **{name: _as_ours(name) for name in found}}
    given = {**{role: role for role in ROLES}, **{key.lower(): pool for key, pool in mapping.items()}, **mapping}
    if unmapped := [name for name in found if name not in given and name.lower() not in given]:
        raise DataError(f"{where}: {what} {unmapped[0]!r} is not in data.roles; add it ({LEFT_OUT} leaves it out)")
    lower = {name.lower() for name in found}
    if absent := [key for key in mapping if key.lower() not in lower]:
        raise DataError(
            f"{where}: data.roles names {absent[0]!r}; there is no such {what}, only {', '.join(found) or 'none'}"
        )
    pools = {name: given.get(name, given.get(name.lower(), "")) for name in found}
    served = {role for pool in pools.values() for role in pool.split("+")}
    if missing := [role for role in ROLES if role not in served]:
        raise DataError(
            f"{where}: data.roles leaves {missing[0]} without images; several roles may share: {suggested(found)}"
        )
    return {"": "", **pools}


def suggested(names: Sequence[str]) -> str:
    """The `data.roles=` to write for these names."""
    kinds = role_kinds(names)
    there = [kind for kind in ROLE_WORDS if kind in kinds.values()]
    if len(there) == 3:
        shares = {"train": "train", "val": "val_select+val_calib", "test": "val_test"}
    elif len(there) == 2:
        shares = dict(zip(there, ("train+val_select", "val_calib+val_test"), strict=True))
    else:
        shares = dict.fromkeys(there or ROLE_WORDS, "+".join(ROLES))
    pools = {
        name: (
            _as_ours(name)
            if _as_ours(name) in ROLES[1:]
            else shares[kind or "train"]
            if kind or not there
            else LEFT_OUT
        )
        for name, kind in kinds.items()
    }
    return "data.roles={" + ", ".join(f"{quoted(name)}: {pool}" for name, pool in pools.items()) + "}"


def quoted(name: str) -> str:
    """A name as it is written in a list or mapping on the command line."""
    return name if re.fullmatch(r"[\w.-]+", name) else json.dumps(name, ensure_ascii=False)


def is_pool(role: str) -> bool:
    """Whether a given role is several, which the split cuts."""
    return "+" in role


# ---- folders -----------------------------------------------------------------------------------------------------


def folder_roles(
    paths: Sequence[Sequence[str]], mapping: Mapping[str, str], classes: Collection[str], where: str
) -> tuple[list[str], list[str]] | None:
    """(role or pool, class) of each image where the top folders are roles; None where they are the classes.

    paths: of each image, the names below the root. The top folders are roles where `data.roles` says so; else, unless
    data.classes names one of them, where all are names of roles, or two kinds of such names hold a subfolder of the
    same name.
    An image in no class folder has the class "". Raises DataError with the line to write where they are not
    the roles of a run.
    """
    below: dict[str, set[str]] = {}
    for parts in paths:
        below.setdefault(parts[0], set()).update(parts[1:2] if len(parts) > 2 else ())
    if not mapping and not _are_roles(below, classes):
        return None
    as_classes = f"data.classes=[{', '.join(map(quoted, below))}]"
    if not any(below.values()):
        raise DataError(
            f"{where}: the folders {', '.join(below)} are named as roles and hold no class folders; give a table with"
            f" labels, or, if they are the classes, {as_classes}"
        )
    otherwise = f"; or, if these are the classes, {as_classes}"
    pools = pools_of(list(below), mapping, where, "folder", otherwise)
    if absent := [role for role in ROLES if not any(role in pool.split("+") for pool in pools.values())]:
        raise DataError(
            f"{where}: the folders {', '.join(below)} leave {absent[0]} without images;"
            f" {suggested(list(below))}{otherwise}"
        )
    depth = _wrapped(paths)
    labels = [parts[1 + depth[parts[0]]] if len(parts) > 2 + depth[parts[0]] else "" for parts in paths]
    return [pools[parts[0]] for parts in paths], labels


def _are_roles(below: Mapping[str, set[str]], classes: Collection[str]) -> bool:
    """Whether the top folders (name -> names of their subfolders) are roles by their names."""
    kinds = {name: kind for name, kind in role_kinds(below).items() if kind}
    if not kinds or set(kinds) & set(classes):
        return False
    return len(kinds) == len(below) or (
        len(set(kinds.values())) > 1 and bool(set.intersection(*(below[name] for name in kinds)))
    )


def _wrapped(paths: Sequence[Sequence[str]]) -> dict[str, int]:
    """Top folder -> number of folders down to its classes: seg_train/seg_train/CLASS, train/images/CLASS."""
    inside: dict[str, list[Sequence[str]]] = {}
    for parts in paths:
        inside.setdefault(parts[0], []).append(parts[1:])
    result = {}
    for top, rest in inside.items():
        depth = 0
        while all(len(parts) > depth + 2 and parts[depth] == rest[0][depth] for parts in rest):
            name = rest[0][depth]
            if name != top and name.lower() not in _WRAPPERS and not role_kinds([name])[name]:
                break
            depth += 1
        result[top] = depth
    return result
