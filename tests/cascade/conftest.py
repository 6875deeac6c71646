"""The bundles and pictures of tests/inference."""

from __future__ import annotations

from ..drawing import no_figures_drawn
from ..inference.conftest import _picture, _tiny_model, bundle_folder, photos, refusing_folder

__all__ = ["_picture", "_tiny_model", "bundle_folder", "no_figures_drawn", "photos", "refusing_folder"]
