"""Results for people: a few lines of text, from the same dictionaries that `--json` prints."""

from typing import Any

from flows.process.streams import say, say_json


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result, as one JSON object or for people."""
    if as_json:
        say_json(result)
    else:
        say(summary(result))


def summary(result: dict[str, Any]) -> str:
    """A result for people."""
    if "sweep" in result:
        return "\n".join(summary(part) for part in result["sweep"])
    if "difference_bpd" in result:
        low, high = result["confidence_interval"]
        lines = [f"{model['model']}: {bits(model)}" for model in result["models"]]
        interval = "no interval"
        if low is not None:
            interval = f"{100 * result['confidence']:g}% interval [{low:+.4f}, {high:+.4f}]"
        return "\n".join([*lines, f"difference: {figure(result['difference_bpd'], '+.4f')} bits/dim, {interval}"])
    if result["protocol"] == "ode":
        return (
            f"{bits(result)} under the probability-flow ODE, {result['num_images']} images,"
            f" {result['num_draws']} {result['dequantisation']} draws, {result['num_probes'] or 'all'} probes"
        )
    steps = "continuous time" if result["num_timesteps"] is None else f"{result['num_timesteps']} steps"
    return (
        f"{bits(result)} = {figure(result['prior_bpd'])} prior + {figure(result['reconstruction_bpd'])} reconstruction"
        f" + {figure(result['diffusion_bpd'])} diffusion\n"
        f"{result['num_images']} images, {result['times_per_image']} times each, {steps}"
    )


def bits(result: dict[str, Any]) -> str:
    """The mean with its standard error, where there is one."""
    error = result["bpd_standard_error"]
    return f"{figure(result['bpd'])}{'' if error is None else f' +- {error:.4f}'} bits/dim"


def figure(value: float | None, form: str = ".4f") -> str:
    """A number in that format; JSON has null where it was not finite."""
    return "not finite" if value is None else format(value, form)
