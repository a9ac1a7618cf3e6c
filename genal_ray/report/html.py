"""The templates, and how values look in them. Whatever a template is given is escaped, unless it is a chart."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jinja2

import genal_ray


def render(template: str, **values: Any) -> str:
    """The page of a template in templates/."""
    return _environment().get_template(template).render(**values)


def number(value: float | None, form: str = ".3g") -> str:
    """A number as text; a dash for one that was not measured or is not finite."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    """Such as `48 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("genal_ray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "duration": duration}
    environment.globals["version"] = genal_ray.__version__
    return environment
