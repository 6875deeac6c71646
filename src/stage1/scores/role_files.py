"""The scores of one role in a run directory: tensors that torch loads, and a JSON file of ids, groups and slices."""

from __future__ import annotations

import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import IntegrityError, MissingError
from stage1.extras import load
from stage1.scores.columns import words_of
from stage1.scores.scores import Scores
from stage1.storage.files import write_bytes, write_text
from stage1.storage.texts import read_json, require_stored


def write_role(folder: str | os.PathLike[str], role: str, scores: Scores) -> list[Path]:
    """Write `{role}_logits.pt`, `_labels.pt`, `_ids.json` (groups, slices, extras) and, with a gate, `_gate_logits.pt`.

    Plain tensors that load with `weights_only=True`; needs torch. Returns the paths written.
    """
    import torch

    folder = Path(folder)
    tensors = {"logits": scores.logits, "labels": scores.labels, "gate_logits": scores.gate}
    written = []
    for name, values in tensors.items():
        path = folder / f"{role}_{name}.pt"
        if values is None:
            path.unlink(missing_ok=True)
            continue
        # Through memory: torch writes a file's name into it, and reports a full disk as a RuntimeError.
        stream = io.BytesIO()
        torch.save(torch.from_numpy(np.ascontiguousarray(values)), stream)
        write_bytes(path, stream.getvalue())
        written.append(path)
    path = folder / f"{role}_ids.json"
    write_text(
        path,
        json.dumps(
            {
                "schema_version": 1,
                "role": role,
                "ids": None if scores.ids is None else scores.ids.tolist(),
                "groups": None if scores.groups is None else scores.groups.tolist(),
                "slices": {name: values.tolist() for name, values in scores.slices.items()},
                **({"extra": {name: values.tolist() for name, values in scores.extra.items()}} if scores.extra else {}),
            }
        )
        + "\n",
    )
    return [*written, path]


def read_ids(folder: str | os.PathLike[str], role: str) -> list[str] | None:
    """The ids in `{role}_ids.json`, without tensors (and torch). Raises IntegrityError where damaged."""
    path = Path(folder) / f"{role}_ids.json"
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))["ids"]
        return None if ids is None else [str(name) for name in ids]
    except Exception as error:  # JSON of any shape and depth
        raise IntegrityError(f"{path}: cannot be read ({words_of(error)}); run `stage1 score` again") from error


def read_role(folder: str | os.PathLike[str], role: str) -> Scores:
    """Read what `write_role` wrote. Raises MissingError, or IntegrityError where the files do not agree."""
    torch = load("torch", "scores of a run (.pt)")

    folder = Path(folder)

    def tensor(name: str) -> NDArray[Any] | None:
        path = folder / f"{role}_{name}.pt"
        if not path.exists():
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch says of a damaged file is said below
                require_stored(path)
                loaded = torch.load(path, weights_only=True, map_location="cpu")
            if not isinstance(loaded, torch.Tensor) or loaded.dtype.is_complex:
                raise TypeError(f"a {type(loaded).__name__}, not a tensor of real numbers")
            # An expanded view claims any number of rows from one.
            if loaded.numel() * loaded.element_size() > loaded.untyped_storage().nbytes():
                raise ValueError(f"shape {tuple(loaded.shape)} is more than it holds")
            return np.asarray(loaded.numpy())
        except Exception as error:  # torch raises a handful of unrelated types for a damaged file
            raise IntegrityError(f"{path}: cannot be read ({words_of(error)}); run `stage1 score` again") from error

    logits = tensor("logits")
    names = folder / f"{role}_ids.json"
    if logits is None or not names.exists():
        raise MissingError(f"{folder / f'{role}_logits.pt'}: no scores of {role}; run `stage1 score {folder}`")
    try:
        keys = read_json(names.read_bytes())
        return Scores(
            logits=logits,
            labels=tensor("labels"),
            gate=tensor("gate_logits"),
            groups=keys["groups"],
            ids=keys["ids"],
            slices=keys.get("slices", {}),
            extra=keys.get("extra", {}),
        )
    except IntegrityError:
        raise
    except Exception as error:  # JSON of any shape and depth, and arrays that do not fit each other
        raise IntegrityError(
            f"{names}: does not agree with its tensors ({words_of(error)}); run `stage1 score` again"
        ) from error
