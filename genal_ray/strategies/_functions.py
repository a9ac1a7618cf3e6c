"""Acquisition functions as hyper-parameters of a strategy: by name, or a mapping with `name` and hyper-parameters."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from genal_ray import registry
from genal_ray.acquisition import Acquisition, Pointwise
from genal_ray.errors import UserError


def _any(value: Any) -> Acquisition:
    return registry.build("genal_ray.acquisition", Acquisition, value)


def _pointwise(value: Any) -> Pointwise:
    function = _any(value)
    if not isinstance(function, Pointwise):
        raise UserError(
            f"{function.name} chooses whole batches and gives a text no score of its own: name a pointwise function "
            "such as entropy"
        )
    return function


AnyFunction = Annotated[SerializeAsAny[Acquisition], BeforeValidator(_any)]
PointwiseFunction = Annotated[SerializeAsAny[Pointwise], BeforeValidator(_pointwise)]
