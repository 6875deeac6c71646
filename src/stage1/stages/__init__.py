"""The stages of a run, in their order; each is an object in a file of its own."""

from stage1.stages import bundle, calibrate, evaluate, export, extract, preprocess, pretrain, score, split, train, tune

STAGES = (
    split.STAGE,
    preprocess.STAGE,
    pretrain.STAGE,
    tune.STAGE,
    extract.STAGE,
    train.STAGE,
    export.STAGE,
    score.STAGE,
    calibrate.STAGE,
    evaluate.STAGE,
    bundle.STAGE,
)
