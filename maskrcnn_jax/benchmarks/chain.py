"""Stages of a computation, and their chain: what each gets from the others."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of the computation.

  Attributes:
    name: in reports.
    function: of the parameters, a dict by name, and of all inputs as keyword
      arguments.
    output: name of what it returns.
    params: names of the parameters, parts of the model.
    inputs: names of the inputs with a gradient.
    fixed: names of the others.
  """

  name: str
  function: Callable[..., Any]
  output: str
  params: Sequence[str] = ()
  inputs: Sequence[str] = ()
  fixed: Sequence[str] = ()

  def forward(self, params: dict, inputs: dict, fixed: dict) -> Any:
    """The output, of what `arguments` returns."""
    return self.function(params, **inputs, **fixed)

  def arguments(
    self, params: Mapping[str, Any], values: Mapping[str, Any]
  ) -> tuple[dict, dict, dict]:
    """What `forward` takes, of all parameters and all values."""
    return (
      {name: params[name] for name in self.params},
      {name: values[name] for name in self.inputs},
      {name: values[name] for name in self.fixed},
    )

  @property
  def has_gradient(self) -> bool:
    """Whether it is differentiated."""
    return bool(self.params or self.inputs)

  def both(self, params, inputs, fixed, cotangent) -> Any:
    """Outputs, and the gradients of parameters and inputs.

    Args:
      params: see `arguments`.
      inputs: likewise.
      fixed: likewise.
      cotangent: gradient of the outputs.
    """
    output, vjp = jax.vjp(
      lambda params, inputs: self.forward(params, inputs, fixed),
      params,
      inputs,
    )
    return output, vjp(cotangent)


def run_forward(
  stages: Sequence[Stage], params: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
  """The values of all stages, one after the other.

  Args:
    stages: each after those whose outputs it takes.
    params: of the model.
    values: what the first stages take.

  Returns:
    `values` and the output of every stage, by name.
  """
  values = dict(values)
  for stage in stages:
    values[stage.output] = stage.forward(*stage.arguments(params, values))
  return values


def run_backward(
  stages: Sequence[Stage],
  params: Mapping[str, Any],
  values: Mapping[str, Any],
  last: str,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
  """The values of all stages, and the gradients of the sum of one of them.

  Args:
    stages: see `run_forward`.
    params: of the model.
    values: what the first stages take.
    last: name of the output whose sum is differentiated.

  Returns:
    values: see `run_forward`.
    cotangents: gradients of outputs, by name; of those that have one.
    gradients: of the parameters.
  """
  values, vjps = dict(values), {}
  for stage in stages:
    own, inputs, fixed = stage.arguments(params, values)
    if not stage.has_gradient:
      values[stage.output] = stage.forward(own, inputs, fixed)
      continue
    values[stage.output], vjps[stage.output] = jax.vjp(
      lambda own, inputs, stage=stage, fixed=fixed: stage.forward(
        own, inputs, fixed
      ),
      own,
      inputs,
    )
  cotangents = {last: jax.tree.map(jnp.ones_like, values[last])}
  gradients = {}
  for output, vjp in reversed(vjps.items()):
    of_params, of_inputs = vjp(cotangents[output])
    gradients |= of_params
    for name, gradient in of_inputs.items():
      if name in cotangents:
        gradient = jax.tree.map(jnp.add, cotangents[name], gradient)
      cotangents[name] = gradient
  return values, cotangents, gradients
