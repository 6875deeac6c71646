"""What ships: one folder with model, policy, certificate and the scores behind the certificate; every file digested."""

from typing import TYPE_CHECKING

from stage1.late import names

if TYPE_CHECKING:
    from stage1.bundle.card import model_card
    from stage1.bundle.manifest import read_calibration, read_manifest
    from stage1.bundle.pack import Facts, write_bundle
    from stage1.bundle.recomputation import recompute
    from stage1.bundle.verify import VerifyReport, verify_bundle
else:
    __getattr__ = names(
        __name__,
        card="model_card",
        manifest="read_calibration read_manifest",
        pack="Facts write_bundle",
        recomputation="recompute",
        verify="VerifyReport verify_bundle",
    )

__all__ = [
    "Facts",
    "VerifyReport",
    "model_card",
    "read_calibration",
    "read_manifest",
    "recompute",
    "verify_bundle",
    "write_bundle",
]
