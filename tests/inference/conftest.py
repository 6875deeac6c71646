"""Bundles are made as in tests/bundle; here are the pictures to answer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# Test folders are no packages (importmode=importlib), so the neighbour's builders are loaded by their path.
_SPEC = importlib.util.spec_from_file_location("bundle_parts", Path(__file__).parents[1] / "bundle" / "conftest.py")
assert _SPEC is not None
assert _SPEC.loader is not None
bundle_parts = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = bundle_parts  # dataclasses look their module up
_SPEC.loader.exec_module(bundle_parts)

RED, BLUE, GREY = (200, 60, 60), (60, 60, 200), (120, 120, 120)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    return bundle_parts.make_parts(folder / "run").write(folder / "my bündle")


@pytest.fixture(scope="session")
def refusing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose calibration was too small to certify anything."""
    folder = tmp_path_factory.mktemp("refusing")
    return bundle_parts.make_parts(folder / "run", n=60).write(folder / "bundle")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """red.jpg, blue.png, grey.JPG in a folder with a space, and a broken file in a folder below."""
    folder = tmp_path / "my phötos"
    (folder / "below").mkdir(parents=True)
    (folder / "1 red.jpg").write_bytes(bundle_parts.picture(RED))
    (folder / "2 blue.png").write_bytes(bundle_parts.picture(BLUE, kind="PNG"))
    (folder / "3 grey.JPG").write_bytes(bundle_parts.picture(GREY))
    (folder / "below" / "cut.jpg").write_bytes(bundle_parts.picture(RED)[:200])
    (folder / "labels.csv").write_text("not an image")
    (folder / ".hidden.jpg").write_bytes(b"")
    return folder


@pytest.fixture(name="tiny_model")
def _tiny_model():
    return bundle_parts.tiny_model


@pytest.fixture(name="picture")
def _picture():
    return bundle_parts.picture
