# SPDX-License-Identifier: MIT
"""Schedulers that have a linear form, for tests: makers by name."""

from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def no_noise(timestep):
    """A tau that makes SA-Solver deterministic."""
    return 0


def _first_order():
    for prediction in ("epsilon", "v_prediction"):
        for clip in (False, True):
            yield (
                f"ddim-{prediction}-{clip}",
                lambda p=prediction, c=clip: DDIMScheduler(prediction_type=p, clip_sample=c),
            )
        yield f"euler-{prediction}", lambda p=prediction: EulerDiscreteScheduler(prediction_type=p)
        yield f"dpm1-{prediction}", lambda p=prediction: DPMSolverMultistepScheduler(solver_order=1, prediction_type=p)
    yield "ddim-range", lambda: DDIMScheduler(clip_sample=True, clip_sample_range=0.7)
    yield "flow", lambda: FlowMatchEulerDiscreteScheduler(shift=3.0)
    yield "flow-inverted", lambda: FlowMatchEulerDiscreteScheduler(invert_sigmas=True)


def _multistep():
    for prediction in ("epsilon", "v_prediction"):
        for order in (2, 3):
            settings = {"solver_order": order, "prediction_type": prediction}
            yield f"dpm{order}-{prediction}", lambda s=settings: DPMSolverMultistepScheduler(**s)
        for order in (1, 2, 3):
            settings = {"solver_order": order, "prediction_type": prediction}
            yield f"unipc{order}-{prediction}", lambda s=settings: UniPCMultistepScheduler(**s)
            yield f"deis{order}-{prediction}", lambda s=settings: DEISMultistepScheduler(**s)
        for orders in ((1, 1), (2, 2), (3, 3), (3, 4)):
            settings = dict(zip(("predictor_order", "corrector_order"), orders, strict=True))
            settings |= {"prediction_type": prediction, "tau_func": no_noise}
            yield f"sa{orders[0]}{orders[1]}-{prediction}", lambda s=settings: SASolverScheduler(**s)
        yield f"lms-{prediction}", lambda p=prediction: LMSDiscreteScheduler(prediction_type=p)
        yield f"pndm-{prediction}", lambda p=prediction: PNDMScheduler(skip_prk_steps=True, prediction_type=p)
    bh1 = {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}
    yield "unipc-bh1", lambda: UniPCMultistepScheduler(**bh1)
    yield "unipc-no-corrector", lambda: UniPCMultistepScheduler(disable_corrector=[0, 3])
    yield "unipc-eps-history", lambda: UniPCMultistepScheduler(predict_x0=False, final_sigmas_type="sigma_min")
    yield "unipc-flow", lambda: UniPCMultistepScheduler(**FLOW)
    yield "dpm2-flow", lambda: DPMSolverMultistepScheduler(**FLOW)
    yield "dpm2-heun", lambda: DPMSolverMultistepScheduler(solver_type="heun")
    yield "deis2-flow", lambda: DEISMultistepScheduler(**FLOW)
    yield "sa-eps-history", lambda: SASolverScheduler(algorithm_type="noise_prediction", tau_func=no_noise)
    yield "ipndm", lambda: IPNDMScheduler()


FIRST_ORDER = dict(_first_order())
MULTISTEP = dict(_multistep())
LINEAR = FIRST_ORDER | MULTISTEP
