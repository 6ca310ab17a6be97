"""WebUI's samplers and schedule types, through diffusers' schedulers.

diffusers spaces its timesteps in its own ways; here the noise levels are k-diffusion's, as
AUTOMATIC1111 WebUI uses them (log-interpolated sigmas at fractional timesteps; Karras et al. 2022
with rho 7; for DDIM and PLMS every (1000 // steps)-th timestep from 1), and the scheduler is handed
them. diffusers is imported when a plan is made, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from extensions_lib.errors import CrucibleError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from extensions_lib.models.loaded import NoiseSchedule

RHO = 7.0  # Karras et al. 2022, "Elucidating the Design Space", eq. 5
SCHEDULES = ("Automatic", "Uniform", "Karras", "Exponential")

Spacing = Literal["sigmas", "timesteps", "unipc"]


@dataclass(frozen=True)
class Sampler:
    """One entry of the sampler list.

    `automatic` is what schedule type Automatic stands for. `second_order` samplers evaluate the
    model twice a step (prompt editing counts these evaluations, as in WebUI). `discard` takes the
    last but one noise level out. Only `spacing` "sigmas" listens to the schedule type.
    """

    name: str
    scheduler: tuple[str, str]  # module of diffusers.schedulers, class
    options: tuple[tuple[str, object], ...] = ()
    spacing: Spacing = "sigmas"
    automatic: str = "Uniform"
    second_order: bool = False
    discard: bool = False


_DPM_2M = (
    ("algorithm_type", "dpmsolver++"),
    ("solver_order", 2),
    ("final_sigmas_type", "zero"),
)
_UNIPC = (("solver_order", 3), ("solver_type", "bh1"), ("final_sigmas_type", "sigma_min"))
_DDIM = (("clip_sample", False), ("set_alpha_to_one", False))
_PLMS = (("skip_prk_steps", True), ("set_alpha_to_one", False))

SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler(
            "DPM++ 2M",
            ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler"),
            _DPM_2M,
            automatic="Karras",
        ),
        Sampler(
            "Euler a", ("scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler")
        ),
        Sampler("Euler", ("scheduling_euler_discrete", "EulerDiscreteScheduler")),
        Sampler("LMS", ("scheduling_lms_discrete", "LMSDiscreteScheduler")),
        Sampler("Heun", ("scheduling_heun_discrete", "HeunDiscreteScheduler"), second_order=True),
        Sampler(
            "DPM2",
            ("scheduling_k_dpm_2_discrete", "KDPM2DiscreteScheduler"),
            automatic="Karras",
            second_order=True,
            discard=True,
        ),
        Sampler(
            "DPM2 a",
            ("scheduling_k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"),
            automatic="Karras",
            second_order=True,
            discard=True,
        ),
        Sampler("DDIM", ("scheduling_ddim", "DDIMScheduler"), _DDIM, spacing="timesteps"),
        Sampler("PLMS", ("scheduling_pndm", "PNDMScheduler"), _PLMS, spacing="timesteps"),
        Sampler(
            "UniPC",
            ("scheduling_unipc_multistep", "UniPCMultistepScheduler"),
            _UNIPC,
            spacing="unipc",
        ),
    )
}


def find_sampler(name: str, schedule: str = "Automatic") -> tuple[Sampler, str]:
    """The sampler and the schedule type it will use, from names as WebUI writes them.

    Case and blanks around do not matter; an old name such as "DPM++ 2M Karras" is the sampler with
    that schedule type. Samplers with timesteps of their own answer "Automatic".
    Raises CrucibleError, naming what there is, for an unknown name.
    """
    wanted, kinds = name.strip().lower(), {kind.lower(): kind for kind in SCHEDULES}
    by_name = {known.lower(): sampler for known, sampler in SAMPLERS.items()}
    kind = kinds.get(schedule.strip().lower() or "automatic")
    if kind is None:
        choices = ", ".join(SCHEDULES)
        raise CrucibleError(f"Schedule type {schedule!r} is not known; choose one of {choices}.")
    sampler = by_name.get(wanted)
    stem, _, suffix = wanted.rpartition(" ")
    if sampler is None and suffix in kinds:
        sampler = by_name.get(stem)
        kind = kinds[suffix] if kind == "Automatic" else kind
    if sampler is None:
        choices = ", ".join(SAMPLERS)
        raise CrucibleError(f"Sampler {name!r} is not known; choose one of {choices}.")
    if sampler.spacing != "sigmas":
        return sampler, "Automatic"
    if kind == "Automatic":
        kind = sampler.automatic
    return sampler, kind


def shown_schedule(sampler: Sampler, kind: str, asked: str) -> str:
    """How WebUI writes the schedule type: a resolved Automatic by its name, Uniform's as it is."""
    automatic = asked.strip().lower() in ("", "automatic")
    return "Automatic" if automatic and kind == "Uniform" else kind


class Levels:
    """The noise levels of a model: sigma = sqrt((1 − ᾱ) / ᾱ) at each training timestep."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        alphas = alphas_cumprod.detach().to("cpu").double()
        self.alphas = alphas
        self.log_sigmas = ((1 - alphas) / alphas).sqrt().log()

    @property
    def lowest(self) -> float:
        return float(self.log_sigmas[0].exp())

    @property
    def highest(self) -> float:
        return float(self.log_sigmas[-1].exp())

    def sigma(self, timesteps: Tensor) -> Tensor:
        """Sigma at fractional timesteps, interpolated in its logarithm."""
        timesteps = timesteps.double()
        low = timesteps.floor().long().clamp(0, len(self.log_sigmas) - 1)
        high = (low + 1).clamp(max=len(self.log_sigmas) - 1)
        return self.log_sigmas[low].lerp(self.log_sigmas[high], timesteps - low).exp()

    def timestep(self, sigmas: Tensor) -> Tensor:
        """The fractional timestep at which the model has this sigma."""
        import torch

        logs = sigmas.double().log()
        high = torch.searchsorted(self.log_sigmas, logs).clamp(1, len(self.log_sigmas) - 1)
        below, above = self.log_sigmas[high - 1], self.log_sigmas[high]
        return high - 1 + ((logs - below) / (above - below)).clamp(0, 1)

    def spaced(self, kind: str, count: int) -> Tensor:
        """`count` falling sigmas by schedule type, without the closing zero."""
        import torch

        if kind == "Karras":
            ramp = torch.linspace(0, 1, count, dtype=torch.double)
            top, bottom = self.highest ** (1 / RHO), self.lowest ** (1 / RHO)
            return (top + ramp * (bottom - top)) ** RHO
        if kind == "Exponential":
            top, bottom = float(self.log_sigmas[-1]), float(self.log_sigmas[0])
            return torch.linspace(top, bottom, count, dtype=torch.double).exp()
        last = len(self.log_sigmas) - 1
        return self.sigma(torch.linspace(last, 0, count, dtype=torch.double))


class Plan:
    """One run of a sampler: its model evaluations in order, and the arithmetic between them.

    `timesteps[i]` is what the model is told at evaluation i, `shown[i]` the step (from 1, of
    `steps`) which that evaluation completes or works on; `start` scales unit noise to the first
    sample. Call `scale` and `advance` once for each evaluation, in order.
    """

    def __init__(
        self,
        sampler: Sampler,
        kind: str,
        steps: int,
        schedule: NoiseSchedule,
        device: object = "cpu",
    ) -> None:
        self.sampler = sampler
        self.prediction = schedule.prediction
        self.levels = Levels(schedule.alphas_cumprod)
        self._scheduler = _scheduler(sampler, schedule)
        build: Callable[[int, str], float] = {
            "sigmas": self._by_sigmas,
            "timesteps": self._by_timesteps,
            "unipc": self._by_unipc,
        }[sampler.spacing]
        self.start = build(steps, kind)
        last = len(self.levels.alphas) - 1
        self.timesteps: Tensor = self._scheduler.timesteps.float().clamp(max=last).to(device)
        self._keys = self._scheduler.timesteps.tolist()
        self.shown = [self._step(index) for index in range(len(self._keys))]
        self.steps = self.shown[-1]
        alphas = 1 / (1 + self.levels.sigma(self._scheduler.timesteps.cpu()) ** 2)
        self._signal = alphas.sqrt().tolist()
        self._noise = (1 - alphas).sqrt().tolist()

    def __len__(self) -> int:
        return len(self._keys)

    def _step(self, index: int) -> int:
        if self.sampler.name == "PLMS":
            return max(index, 1)
        return index // 2 + 1 if self.sampler.second_order else index + 1

    def scale(self, sample: Tensor, index: int) -> Tensor:
        """The sample as the model wants it, with unit variance."""
        scaled: Tensor = self._scheduler.scale_model_input(sample, self._keys[index])
        return scaled

    def advance(
        self, output: Tensor, index: int, sample: Tensor, generators: list[torch.Generator]
    ) -> Tensor:
        """The next sample from the model's output; fresh noise comes from each picture's own
        generator, so that a picture does not depend on its neighbours in the batch."""
        if self.sampler.name == "PLMS" and self.prediction == "v_prediction":
            # PLMS averages what it is given: these must be noises, not velocities.
            output = self._signal[index] * output + self._noise[index] * sample
        ancestral = {"generator": generators} if self.sampler.name in ("Euler a", "DPM2 a") else {}
        step = self._scheduler.step(
            output, self._keys[index], sample, return_dict=False, **ancestral
        )
        following: Tensor = step[0]
        return following

    def finished(self, scaled: Tensor, output: Tensor, index: int) -> Tensor:
        """The finished latent that the model foresees from its unit-variance input."""
        signal, noise = self._signal[index], self._noise[index]
        if self.prediction == "v_prediction":
            return signal * scaled - noise * output
        return (scaled - noise * output) / signal

    def _by_sigmas(self, steps: int, kind: str) -> float:
        import torch

        sigmas = self.levels.spaced(kind, steps + 1 if self.sampler.discard else steps)
        if self.sampler.discard:
            sigmas = sigmas[:-1]
        scheduler = self._scheduler
        if self.sampler.second_order:
            # Interleaving the half steps is the scheduler's business: give it the levels at the
            # place where it would compute its own. (Its half steps past the end are zeros.)
            scheduler._convert_to_exponential = lambda *_, **__: sigmas.numpy()
            scheduler._sigma_to_t = lambda sigma, *_: float(
                self.levels.timestep(torch.as_tensor(sigma).double().clamp(min=1e-10).reshape(1))
            )
            scheduler.set_timesteps(steps)
        else:
            scheduler.set_timesteps(steps)
            scheduler.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).float()
            scheduler.timesteps = self.levels.timestep(sigmas).float()
        scheduler.set_begin_index(0)
        return self._start(float(sigmas[0]))

    def _by_timesteps(self, steps: int, kind: str) -> float:
        import torch

        total = len(self.levels.alphas)
        timesteps = torch.arange(0, total, total // steps).add(1).flip(0)
        # The highest may lie one past the end, where WebUI takes the last level.
        alphas = self._scheduler.alphas_cumprod
        self._scheduler.alphas_cumprod = torch.cat([alphas, alphas[-1:]])
        self._scheduler.set_timesteps(steps)
        if len(timesteps) == 1:
            timesteps = timesteps.new_tensor([total - 1])
        elif self.sampler.name == "PLMS":
            # Its first step is a Heun step, whose second evaluation is at the step's end.
            timesteps = torch.cat([timesteps[:2], timesteps[1:-1]])
        else:
            timesteps = timesteps[:-1]  # as WebUI, which ends at timestep 1: nothing is left there
        self._scheduler.timesteps = timesteps
        return 1.0

    def _by_unipc(self, steps: int, kind: str) -> float:
        import torch

        timesteps = torch.linspace(len(self.levels.alphas) - 1, 0, steps + 1, dtype=torch.double)
        self._scheduler.set_timesteps(steps)
        self._scheduler.sigmas = self.levels.sigma(timesteps).float()
        self._scheduler.timesteps = timesteps[:-1].float()
        self._scheduler.set_begin_index(0)
        return 1.0

    def _start(self, sigma: float) -> float:
        """WebUI starts from noise · sigma; DPM++ 2M keeps its samples at unit variance here."""
        if self.sampler.name == "DPM++ 2M":
            return sigma / (1 + sigma * sigma) ** 0.5
        return sigma


def _scheduler(sampler: Sampler, schedule: NoiseSchedule) -> Any:
    """The diffusers scheduler with the model's own noise schedule.

    Imported by module: `diffusers.schedulers` itself hides LMS where scipy is missing.
    """
    from importlib import import_module

    module, name = sampler.scheduler
    kind = getattr(import_module(f"diffusers.schedulers.{module}"), name)
    alphas = schedule.alphas_cumprod.detach().to("cpu").double()
    betas = 1 - alphas / alphas.roll(1)
    betas[0] = 1 - alphas[0]
    options = dict(sampler.options)
    count = len(alphas)
    if sampler.second_order:
        options["use_exponential_sigmas"] = True
        count = 2  # these lay out all training steps when made, slowly and for nothing
    prediction = "epsilon" if sampler.name == "PLMS" else schedule.prediction
    scheduler = kind(
        num_train_timesteps=count,
        trained_betas=betas.tolist(),
        prediction_type=prediction,
        **options,
    )
    scheduler.alphas_cumprod = alphas.float()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    if sampler.name == "LMS":
        scheduler.get_lms_coefficient = lambda order, index, which: lms_coefficient(
            scheduler.sigmas.tolist(), order, index, which
        )
    return scheduler


def lms_coefficient(sigmas: list[float], order: int, index: int, which: int) -> float:
    """The Adams-Bashforth weight of derivative `which` back: the integral, from this sigma to the
    next, of the Lagrange polynomial that is 1 at its sigma and 0 at the others'; exact, as a
    polynomial (diffusers integrates it numerically and needs scipy for that)."""
    import numpy

    nodes = [sigmas[index - back] for back in range(order)]
    others = [node for back, node in enumerate(nodes) if back != which]
    scale = 1.0
    for node in others:
        scale *= nodes[which] - node
    # Around the current sigma, so that small steps keep their digits.
    centre = sigmas[index]
    polynomial = numpy.poly1d([node - centre for node in others], r=True).integ()
    return float((polynomial(sigmas[index + 1] - centre) - polynomial(0.0)) / scale)
