"""The model card of a bundle: README.md, every number of it taken from the documents of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from stage1.bundle.licences import licence_header
from stage1.evaluation.argmax import argmax_lines, largest
from stage1.evaluation.linear import MANY_UNITS
from stage1.evaluation.verdict import Verdict, judge
from stage1.policy import Certificate
from stage1.policy.certificate import shown_bound
from stage1.risk.definition import on_average
from stage1.views import ViewsDocument

_METRICS = {
    "accuracy": "accuracy",
    "mcc": "Matthews correlation",
    "auroc_f": "AUROC of right against wrong",
    "aurc": "AURC",
    "e_aurc": "excess AURC",
    "augrc": "AUGRC",
    "e_augrc": "excess AUGRC",
    "nll": "negative log-likelihood",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}


def model_card(
    manifest: Mapping[str, Any],
    certificate: Certificate,
    evaluation: Mapping[str, Any] | None,
    views: ViewsDocument | None = None,
) -> str:
    """README.md: the YAML header of the hub, then guarantee, intended use, data, evaluation, how to verify, limits.

    manifest: bundle.json, complete up to `files` and `digest` (which cannot be in a file that they cover).
    evaluation: the evaluation document of val_test, or None: the card then says that there was none. views: the views
    that every answer is made from, None for the whole image alone.
    """
    sections = (
        f"# {_line(manifest['name'])}",
        _summary(manifest, certificate, _views(views, evaluation), judge(certificate.to_document(), evaluation)),
        "## Guarantee", _guarantee(certificate, manifest),
        "## Intended use", _intended_use(manifest, certificate),
        "## Data", _data(manifest["data"]),
        "## Evaluation", _evaluation(evaluation),
        "## How to verify", _how_to_verify(),
        "## Limits", _limits(manifest, certificate),
    )  # fmt: skip
    return f"---\n{_header(manifest, evaluation)}---\n\n" + "\n\n".join(sections) + "\n"


def _header(manifest: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    backbone = manifest["backbone"]
    header: dict[str, Any] = {**licence_header(backbone["licence"])}
    header |= {
        "library_name": "stage1-pro",
        "pipeline_tag": "image-classification",
        "tags": [
            "selective-classification",
            "cascade",
            "onnx",
            "certified" if manifest["certified"] else "not-certified",
        ],
    }
    if backbone["base_model"]:
        header["base_model"] = _line(backbone["base_model"])
    if source := manifest["data"].get("source"):
        header["datasets"] = [_line(source)]
    if evaluation is not None:
        header["metrics"] = sorted(name for name, value in evaluation["metrics"].items() if value["value"] is not None)
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _summary(manifest: Mapping[str, Any], certificate: Certificate, views: Mapping[str, str], verdict: Verdict) -> str:
    head = f"**{verdict.title}** (verdict: **{verdict.colour}**). {verdict.line}"
    if verdict.reasons:
        head += "\n\n" + _list(verdict.reasons)
    head += "\n\n" + ("" if certificate.certified else "**Not certified: every image defers.** ")
    classes = ", ".join(f"`{_line(name)}`" for name in manifest["classes"])
    backbone = manifest["backbone"]
    return (
        f"{head}{_line(certificate.statement)}\n\n"
        "The first stage of an image classifier in two or more stages: it answers (`exit`) or passes the image on "
        "(`defer`).\n\n"
        + _bullets(
            {
                "classes": (
                    classes
                    + (f", positive: `{_line(manifest['positive_class'])}`" if manifest["positive_class"] else "")
                ),
                "backbone": f"{_line(backbone['name'])} (licence: {_line(backbone['licence'])}, texts in `LICENSES/`)",
                **_weights(backbone),
                "policy": f"{manifest['policy']} (`{manifest['policy_file']}`)",
                "probability": _probability(manifest),
                "input": _input(manifest["preprocessing"]),
                **views,
                "made by": f"stage1-pro {manifest['stage1_version']}, config {manifest['created_from']['config'][:12]}",
                "model": f"sha256 `{manifest['created_from']['model']}`",
            }
        )
    )


def _weights(backbone: Mapping[str, Any]) -> dict[str, str]:
    """The file that the weights were read from; nothing where they are known by name."""
    digest = backbone.get("weights_sha256")
    return {} if digest is None else {"weights": f"from a file, sha256 `{digest}`"}


def _views(views: ViewsDocument | None, evaluation: Mapping[str, Any] | None) -> dict[str, str]:
    """Which views are evaluated and why; nothing for the whole image alone."""
    if views is None:
        return {}
    lines = {"views": f"{views.description} (`views.json`); the certificate is of these views"}
    if views.comparison is not None:
        lines["views chosen"] = _line(views.comparison["reason"])
    if views.sequence is not None and evaluation is not None and "views" in evaluation:
        seen = evaluation["views"]
        lines["views looked at"] = f"{_number(seen['mean'])} of {seen['of']} on average on `{evaluation['role']}`"
    return lines


def _probability(manifest: Mapping[str, Any]) -> str:
    reported = manifest.get("probability")
    if reported is None:
        return "the softmax of the logits"
    text = f"{_line(reported['reason'])} (`calibration.json`, fitted on val_select)"
    if reported["score"] == "mapped":
        text += "; the thresholds lie on the score after this map, and the certificate is of that score"
    return text


def _guarantee(certificate: Certificate, manifest: Mapping[str, Any]) -> str:
    document = certificate.to_document()
    rows = [
        [
            f"`{name}`",
            f"<= {risk.target:g}",
            _number(risk.observed),
            "0 (never answered)" if risk.by_construction else _bound(shown_bound(document, name)),
            str(risk.errors),
            str(risk.n),
            f"{risk.delta:.6g}",
            str(risk.needed),
        ]
        for name, risk in certificate.risks.items()
    ]
    coverage = certificate.coverage
    units = {
        "image": "images",
        "group": "groups (one image of each, drawn by hash)",
        "group_draws": "groups (21 draws of one image of each, by hash)",
        "group_mean": "groups (all their images, each group with the same weight)",
    }[certificate.unit]
    counted = "groups" if certificate.unit == "group" else "images"
    facts = {
        "confidence": (
            "none: the promise is on average over calibration sets (in expectation)"
            if on_average(certificate.method)
            else f"{certificate.headline_confidence:g}, for all risks together{_looks(certificate)}"
        ),
        "method": certificate.method,
        "unit": f"{certificate.n_units} {units}, of {certificate.n_images} calibration images",
        "exits": (
            f"{coverage.exits} of {coverage.n} calibration {counted} ({_percent(coverage.value)}); "
            + ", ".join(f"{_line(name)} {item.exits} of {item.n}" for name, item in certificate.per_class.items())
        ),
        "calibration ids": f"sha256 `{certificate.calib_digest}`",
    }
    parts = [
        f"> {_line(certificate.statement)}",
        _table(
            ["risk", "target", "observed", "joint upper bound", "errors", "n", "delta", "n needed with 0 errors"], rows
        ),
        (
            "The promise is the column target. Joint upper bounds hold together, with the confidence below, and say"
            " where the data show more than the target; a dash: they do not."
        ),
        _bullets(facts),
    ]
    if certificate.slices:
        parts.append(_slices(certificate))
    if not certificate.certified:
        parts.append(
            _bullets(
                {
                    "why not": _line(certificate.reason or ""),
                    "needed": _line(certificate.needed or "nothing more can be said"),
                }
            )
        )
    elif certificate.unclaimed and certificate.needed:
        parts.append(_bullets({"to open what stays shut": _line(certificate.needed)}))
    parts += [
        "It rests on these assumptions:\n\n" + _list(certificate.assumptions),
        "It is void if:\n\n" + _list(certificate.void_if),
        (
            "The guarantee is about the images that the model will see as a whole, and its confidence is over the draw"
            " of the calibration images; it says nothing about a single image."
        ),
    ]
    return "\n\n".join(parts)


def _looks(certificate: Certificate) -> str:
    """What the confidence counts: delta of this look, and what the others at the same images cost."""
    attempts, own = certificate.attempts, f"delta = {certificate.delta:.6g}"
    if attempts is None:
        return f" ({own}; looks at the calibration images were not counted)"
    kind = f", {attempts.planned} planned" if attempts.planned is not None else ""
    kind += ", sequential schedule" if attempts.schedule == "sequential" else ""
    return (
        f" (this look {own}; look {attempts.number} at its calibration images{kind}, {attempts.spent:.6g} spent in all)"
    )


def _slices(certificate: Certificate) -> str:
    """A row for each slice, with its own thresholds where it has them."""
    joint, own = certificate.bounds is not None, certificate.slice_thresholds is not None
    rows = [
        [
            _line(claim.name),
            str(claim.n),
            *([str(claim.exits), _cut(claim.lo), _cut(claim.hi)] if own else []),
            *(_bound(risk.bound if joint and claim.certified else None) for risk in claim.risks.values()),
            "holds" if claim.certified else "not shown, defers" if own else "not shown",
        ]
        for claim in certificate.slices
    ]
    columns = ["slice", "n", *(["exits", "lo", "hi"] if own else [])]
    table = _table([*columns, *(f"{name}: joint bound" for name in certificate.risks), "claim"], rows)
    if not own:
        return table
    attribute = _line(certificate.slices[0].attribute)
    return (
        f"{table}\n\nEach slice has thresholds of its own. An image whose `{attribute}` is not shown above, is another"
        " one or is not known defers: give it with the images (`stage1 predict` takes it from a column of that name)."
    )


def _cut(value: float | None) -> str:
    return "never" if value is None else f"{value:.6g}"


def _intended_use(manifest: Mapping[str, Any], certificate: Certificate) -> str:
    kinds = " or ".join(f"`{_line(name)}`" for name in manifest["classes"])
    return (
        f"Telling {kinds} in images of the kind described under Data, as the first stage of a cascade: images that exit"
        " are answered here, images that defer belong to the next stage or to a person."
        + (
            ""
            if certificate.certified
            else " As nothing is certified, every image defers; the label is a suggestion, not an answer."
        )
        + "\n\n```\nstage1 predict . photos/ --json\n```\n\n"
        '```python\nfrom stage1 import load_bundle\n\nfor row in load_bundle(".").predict(["photo.jpg"]):\n'
        "    print(row.path, row.decision, row.label, row.probability)\n```"
    )


def _data(data: Mapping[str, Any]) -> str:
    lines = {
        str(name): _line(value) for name, value in data.items() if name != "roles" and not isinstance(value, Mapping)
    }
    parts = [_bullets(lines)] if lines else []
    for name, mapping in data.items():
        if not isinstance(mapping, Mapping) or not mapping:
            continue
        inner = [value for value in mapping.values() if isinstance(value, Mapping)]
        if len(inner) == len(mapping):
            columns = list(dict.fromkeys(column for value in inner for column in value))
            rows = [
                [_line(key), *(_line(value.get(column, "")) for column in columns)] for key, value in mapping.items()
            ]
            parts.append(_table([name.removesuffix("s"), *map(_line, columns)], rows))
        else:
            parts.append(f"{_line(name)}:\n\n" + _bullets({str(key): _line(value) for key, value in mapping.items()}))
    parts.append(
        "`calibration.parquet` holds, for every calibration image, the sha256 of its file, its group, its label and its"
        " logits, and no picture. Group names are kept as they were given, because they decide which image of a group"
        " is counted: if they say something private (a person, a plate, a place), give neutral names to the groups"
        " before you publish a bundle."
    )
    return "\n\n".join(parts)


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return (
            "No held-out evaluation was made. The guarantee above does not need one; "
            "everything else about quality is unknown."
        )
    grouped = evaluation["unit"] == "group"
    level = f"{_percent(evaluation['level'])} interval"
    text = (
        f"On {evaluation['n']} images of `{evaluation['role']}`"
        + (f" in {evaluation['n_groups']} groups" if grouped else "")
        + ", not used for training, selection or the certificate. "
    )
    unit = "group" if grouped else "image"
    if evaluation["n_groups"] >= MANY_UNITS:
        text += (
            f"Intervals: t from what each {unit} moves a metric by, which is what a bootstrap of so many comes to "
            "(drawn where a metric hangs on few of them); of risks, coverage and accuracy "
            + ("Clopper and Pearson with as many images as the groups are worth." if grouped else "exact.")
        )
    elif grouped:
        text += (
            f"Intervals: t from a bootstrap over groups ({evaluation['resamples']} resamples); of risks, coverage and "
            "accuracy Clopper and Pearson with as many images as the groups are worth."
        )
    else:
        text += (
            f"Intervals: t from a bootstrap ({evaluation['resamples']} resamples) for the metrics, exact (Clopper and "
            "Pearson) for risks, coverage and accuracy."
        )
    metrics = [
        [_METRICS.get(name, name), _number(value["value"]), _interval(value)]
        for name, value in evaluation["metrics"].items()
        if name != "coverage" and value["value"] is not None
    ]
    risks = [
        [
            f"`{name}`",
            _number(risk["observed"]),
            _interval(risk, grouped),
            f"{risk['errors']} of {risk['n']}",
            "" if risk["target"] is None else f"<= {risk['target']:g}",
        ]
        for name, risk in evaluation["risks"].items()
    ]
    shares = {"all images": evaluation["coverage"]["overall"], **evaluation["coverage"]["per_class"]}
    coverage = [
        [_line(name), _number(share["value"]), _interval(share, grouped), f"{share['exits']} of {share['n']}"]
        for name, share in shares.items()
    ]
    confusion = evaluation["exit_confusion"]
    counts = [[_line(name), *map(str, row)] for name, row in zip(confusion["rows"], confusion["counts"], strict=True)]
    return "\n\n".join(
        [
            text,
            _table(["metric", "value", level], metrics),
            _table(["risk", "observed", level, "errors", "target"], risks),
            _table(["coverage", "value", level, "exits"], coverage),
            _table(["true class", *map(_line, confusion["columns"])], counts),
            *_beside_argmax(evaluation),
        ]
    )


def _beside_argmax(evaluation: Mapping[str, Any]) -> list[str]:
    """The policy beside the plain argmax, wrong of answered; nothing for documents from before they had it."""
    rows = argmax_lines(evaluation)
    if not rows:
        return []
    names = list(rows[0].per_class)
    return [
        f"Beside the plain argmax (the class of the {largest(len(names))} logit):",
        _table(
            ["wrong answers", "coverage", "wrong", "error", *map(_line, names)],
            [
                [
                    row.rule,
                    _number(row.coverage),
                    f"{row.errors} of {row.n}",
                    _number(row.error),
                    *("{} of {}".format(*row.per_class[name]) for name in names),
                ]
                for row in rows
            ],
        ),
    ]


def _how_to_verify() -> str:
    return (
        "```\nstage1 verify .               # every byte is as it was written, the documents agree\nstage1 verify ."
        " --recompute   # and certificate, map and this card follow from the scores in it\n```\n\nIt takes on trust"
        " those scores and labels, the evaluation on val_test, what is said of data and licences, and who made the"
        " bundle: there is no signature. The identity of this bundle is the field `digest` of `bundle.json`; `verify`"
        " prints it. Compare it with the digest that the maker of the bundle published: a folder that was rewritten as"
        " a whole verifies too, under another digest."
    )


def _limits(manifest: Mapping[str, Any], certificate: Certificate) -> str:
    limits = [
        "The labels of the calibration images are taken as the truth; the guarantee is about agreement with them.",
        (
            "Images from another kind of source than the calibration images are outside the guarantee; nothing detects"
            " them."
        ),
        "A broken or unreadable image is reported and never answered.",
        "A quantised, fused or otherwise re-exported model is another model and needs its own certificate.",
    ]
    if certificate.assume_iid:
        limits.insert(
            0,
            "Images of one group were treated as independent (assume_iid); where they are not, the bound is too small.",
        )
    if certificate.attempt > 1:
        limits.insert(
            0,
            f"The calibration images were looked at for {certificate.attempt} certificates, this one included; the"
            + (
                " promise is a mean, and that of the best of them may be so many times as large."
                if on_average(certificate.method)
                else " stated confidence counts them."
            )
            if certificate.attempts is not None
            else f"The calibration images were used for {certificate.attempt} targets, this one included.",
        )
    if certificate.certified:
        never = ", ".join(f"`{name}`" for name in certificate.never_answered)
        limits = [
            *certificate.unlimited,
            *([f"No image exits as {never}; that answer is never given."] if never else []),
            *_of_all_classes(certificate),
            *limits,
        ]
    return _list(limits)


def _of_all_classes(certificate: Certificate) -> list[str]:
    """`error` limits the answers of all classes together, which says little of a rare one."""
    if set(certificate.risks) != {"error"}:
        return []
    return [
        "`error` is the share of wrong answers over all classes together, at the class balance that the guarantee"
        " states: among the images of one class, a rare one above all, the share may be larger."
    ]


# ---- markdown ----------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _bullets(values: Mapping[str, str]) -> str:
    return "\n".join(f"- {_line(name)}: {value}" for name, value in values.items())


def _list(values: Sequence[str]) -> str:
    return "\n".join(f"- {_line(value)}" for value in values)


def _line(value: Any) -> str:
    """One line of text: a name with a line break in it must not open a heading of its own."""
    return " ".join(str(part) for part in _flat(value))


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        yield ", ".join(_line(item) for item in value)
    else:
        yield from str(value).split()


def _input(preprocessing: Mapping[str, Any]) -> str:
    share = preprocessing.get("crop_pct")
    crop = "" if share is None else f" of {share:.4g} of the shorter side"
    return f"{{size}} x {{size}} px, {{fit}}{crop}, {{interpolation}}; at most {{max_pixels}} pixels a file".format(
        **preprocessing
    )


def _bound(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _interval(value: Mapping[str, Any], grouped: bool = False) -> str:
    low, high = (value["group_low"], value["group_high"]) if grouped else (value["low"], value["high"])
    return str(value.get("note", "no interval")) if low is None or high is None else f"{low:.4g} to {high:.4g}"
