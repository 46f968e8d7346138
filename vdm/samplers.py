"""The samplers by their usual names.  Loads no torch."""

from typing import Literal, NamedTuple

SamplerName = Literal["ancestral", "ddim", "dpm-solver++", "sde-dpm-solver++"]


class Sampler(NamedTuple):
    """The order and the noise of a step, the sampler's title, what it is for, and where it is described."""

    order: int
    eta: float
    title: str
    purpose: str
    source: str

    @property
    def settings(self) -> dict[str, float]:
        """The settings of `vdm.sampling.Solver` that make it this sampler."""
        return {"order": self.order, "eta": self.eta}


DPM_SOLVER = "Lu et al. 2022, arXiv 2211.01095"

SAMPLERS: dict[SamplerName, Sampler] = {
    "ancestral": Sampler(1, 1.0, "ancestral sampling", "first order, with all noise, as in the paper", "section 3.3"),
    "ddim": Sampler(1, 0.0, "DDIM", "first order, without new noise", "Song et al. 2020, arXiv 2010.02502"),
    "dpm-solver++": Sampler(2, 0.0, "DPM-Solver++(2M)", "second order, without new noise", DPM_SOLVER),
    "sde-dpm-solver++": Sampler(
        2, 1.0, "stochastic DPM-Solver++(2M)", "second order, with noise, for few steps", DPM_SOLVER
    ),
}


def sampler_name(order: int, eta: float) -> SamplerName | None:
    """Return the name of the sampler with this order and noise; None if it has none."""
    return next((name for name, sampler in SAMPLERS.items() if sampler[:2] == (order, eta)), None)
