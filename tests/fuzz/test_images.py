"""200 damaged files of each kind of image: each is an image or one line of a known reason, in bounded time and
memory.
"""

from __future__ import annotations

import io
import random
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from stage1.runtime.images import REASONS, ImageError
from stage1.runtime.preprocessing import Preprocessing, load_tensor

MUTATIONS = 200
SECONDS, MEMORY = 10, 1536 << 20
KINDS = {
    "jpg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
}


def mutations(data: bytes, seed: str) -> Iterator[bytes]:
    """Changed, cut, doubled, blanked and overwritten bytes; half of them in the first 100, where the header is."""
    draw = random.Random(seed)
    for _ in range(MUTATIONS):
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8, 64))):
            at = draw.randrange(min(100, len(changed)) if draw.random() < 0.5 else len(changed))
            length = draw.choice((1, 1, 2, 4, 40, 400))
            part = draw.choice(
                (
                    draw.randbytes(length),
                    bytes(length),
                    b"\xff" * length,
                    b"\x7f" * length,
                    b"",
                    bytes(changed[at : at + length]) * 2,
                    data,
                )
            )
            changed[at : at + (0 if part is data else length)] = part
            if len(changed) > 4 * len(data) or not changed:
                break
        yield bytes(changed)


def sample(kind: str) -> bytes:
    noise = np.random.default_rng(5).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    noise[10:30] = 90
    stream = io.BytesIO()
    name, options = KINDS[kind]
    Image.fromarray(noise).save(stream, name, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_is_an_image_or_one_line(kind: str) -> None:
    done = subprocess.run([sys.executable, __file__, kind], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    read, refused = map(int, done.stdout.split())
    assert read + refused == MUTATIONS
    assert refused >= 20, "the damage is felt"


def _all(kind: str) -> tuple[int, int]:
    """How many are read and refused. An exception of another kind, a hang or too much memory ends the process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    read = refused = 0
    for data in mutations(sample(kind), kind):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of CPU: another load of the machine does not count
        try:
            tensor = load_tensor(data, Preprocessing(size=32))
        except ImageError as error:
            said, why = str(error), error.reason
            refused += 1
        else:
            assert np.isfinite(tensor).all()
            said, why = "", None
            read += 1
        assert why is None or why in REASONS, said
        assert "\n" not in said
        assert len(said) < 400
    signal.setitimer(signal.ITIMER_PROF, 0)
    return read, refused


if __name__ == "__main__":
    print(*_all(sys.argv[1]))
