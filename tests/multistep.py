# SPDX-License-Identifier: MIT
"""Settings of the multistep solvers beside DPM-Solver++, by name; ``tiny.SCHEDULERS`` holds them too."""

from diffusers import (
    DEISMultistepScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
PLMS = {"skip_prk_steps": True, "steps_offset": 1}
NOISE_SPACE = {"algorithm_type": "noise_prediction"}


def never(t):
    """SASolver's tau where it is to draw no noise; a plain function, so that the scheduler pickles."""
    return 0


def always(t):
    return 1


SCHEDULERS = {
    "unipc1": lambda: UniPCMultistepScheduler(**SCALED, solver_order=1),
    "unipc2": lambda: UniPCMultistepScheduler(**SCALED),
    "unipc2-v": lambda: UniPCMultistepScheduler(**SCALED, **V),
    "unipc2-flow": lambda: UniPCMultistepScheduler(**FLOW),
    "unipc2-bh1": lambda: UniPCMultistepScheduler(**SCALED, solver_type="bh1", final_sigmas_type="sigma_min"),
    "unipc2-eps-space": lambda: UniPCMultistepScheduler(**SCALED, predict_x0=False, final_sigmas_type="sigma_min"),
    "unipc2-uncorrected": lambda: UniPCMultistepScheduler(**SCALED, disable_corrector=list(range(25))),
    "unipc2-threshold": lambda: UniPCMultistepScheduler(**SCALED, thresholding=True),
    "unipc3": lambda: UniPCMultistepScheduler(**SCALED, solver_order=3),
    "deis2": lambda: DEISMultistepScheduler(**SCALED),
    "deis2-v": lambda: DEISMultistepScheduler(**SCALED, **V),
    "deis2-threshold": lambda: DEISMultistepScheduler(**SCALED, thresholding=True),
    "deis3-flow": lambda: DEISMultistepScheduler(**FLOW, solver_order=3),
    "lms": lambda: LMSDiscreteScheduler(**SCALED),
    "lms-v": lambda: LMSDiscreteScheduler(**SCALED, **V, use_karras_sigmas=True),
    "plms": lambda: PNDMScheduler(**SCALED, **PLMS),
    "plms-v": lambda: PNDMScheduler(**SCALED, **PLMS, **V, set_alpha_to_one=True),
    "ipndm": lambda: IPNDMScheduler(),
    "sa2": lambda: SASolverScheduler(**SCALED, tau_func=never),
    "sa3-flow": lambda: SASolverScheduler(**FLOW, tau_func=never, predictor_order=3, corrector_order=3),
    "sa2-eps-space": lambda: SASolverScheduler(**SCALED, **NOISE_SPACE, tau_func=never),
    "sa-sde": lambda: SASolverScheduler(**SCALED, tau_func=always),
    "sa-sde-v": lambda: SASolverScheduler(**SCALED, **V, predictor_order=1, corrector_order=2),
    "sa-threshold": lambda: SASolverScheduler(**SCALED, thresholding=True, tau_func=never),
}
