"""Figures as a person reads them. None, which is "not known", is always a dash."""

from __future__ import annotations

UNKNOWN = "-"


def duration(seconds: float | None) -> str:
    """0.41s, 12.3s, 4m07s, 1h02m, 2d03h."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for big, name, small, unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= big:
            return f"{whole // big}{name}{whole % big // small:02d}{unit}"
    raise AssertionError(seconds)


def size(count: float | None) -> str:
    """Bytes in binary units with three digits: 840 B, 31.2 MiB, 1.59 GiB."""
    if count is None:
        return UNKNOWN
    factor, unit = _unit(count)
    return f"{_digits(count / factor)} {unit}" if factor > 1 else f"{count:.0f} B"


def size_of(count: float, whole: float) -> str:
    """Both in the unit of the whole: 67.1 of 70.0 GiB."""
    factor, unit = _unit(whole)
    return f"{_digits(count / factor) if count else 0} of {_digits(whole / factor)} {unit}"


def amount(count: float | None) -> str:
    """A number with three digits or more: 0.41, 8.25, 97.3, 812, 12,400."""
    return UNKNOWN if count is None else _digits(count)


def count(number: int | None) -> str:
    """A whole number with its thousands set apart."""
    return UNKNOWN if number is None else f"{number:,}"


def short(number: float) -> str:
    """A large number with three digits: 512, 8.03 B, 69.0 B, 1.1 M."""
    for big, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= big:
            return _digits(number / big) + unit
    return _digits(number)


def off(measured: float | None, predicted: float | None, points: bool = False) -> str:
    """By how much a prediction missed: of what was measured, or for shares in points of a hundred."""
    if predicted is None or measured is None or not (measured or points):
        return ""
    if points:
        return f"{100 * (predicted - measured):+.0f} pt"
    return f"{predicted / measured - 1:+.0%}".replace("%", " %")


def percent(share: float | None) -> str:
    """0.254 as 25 %, and 0.0254 as 2.5 %; what is there never reads as 0 %."""
    if share is None:
        return UNKNOWN
    if 0 < share < 0.0005:
        return "<0.1 %"
    return (
        f"{share:.1%}".replace("%", " %")
        if 0 < share < 0.0995
        else f"{share:.0%}".replace("%", " %")
    )


def _unit(count: float) -> tuple[float, str]:
    factor, unit = 1.0, "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count / factor < 999.5:
            break
        factor, unit = factor * 1024, larger
    return factor, unit


def _digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
