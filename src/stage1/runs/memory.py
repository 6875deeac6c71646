"""The most memory that this process holds while a stage runs, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Reset the count of the peak; False where this machine cannot (only Linux can)."""
    try:
        _CLEAR.write_text("5")  # man 5 proc: resets VmHWM to what is resident now
    except OSError:
        return False
    return True


def peak_mib() -> float | None:
    """Largest resident size since `reset_peak`, MiB of this process alone; None where the kernel does not say."""
    try:
        text = _STATUS.read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:")]
    return round(int(found[0]) / 1024, 1) if found else None
