# SPDX-License-Identifier: MIT
"""Warnings of an enabled scheduler, each given once."""

import logging

logger = logging.getLogger("ascedfast")

SHARED = (
    "ASCED is enabled on a pipeline whose scheduler another pipeline or a loop steps: that run is left alone; to watch "
    "another pipeline, give it a scheduler of its own, pipe.scheduler = pipe.scheduler.from_config("
    "pipe.scheduler.config), and call enable_asced on it; to watch a loop, call enable_asced(scheduler) in place of "
    "enable_asced(pipe)"
)
LATE_ENABLED = (
    "ASCED was enabled on the pipeline after set_timesteps of this run, as within its call: this run is left alone, "
    "the pipeline's next call is watched; to watch a loop of your own, call enable_asced(scheduler) before it in place "
    "of enable_asced(pipe)"
)
COPIED = (
    "the pipeline steps copies of its scheduler, made within its call (as of LTX2 for its sound, of SkyReels for each "
    "frame): what they step is left alone, what the scheduler itself steps is watched; nothing is to be done, but "
    "where the report stays empty call disable_asced"
)
NESTED = (
    "a pipeline was called within the call of one that steps the same scheduler: both are left alone from there on; "
    "give the inner one a scheduler of its own: pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config)"
)

SWAPPED = (
    "the scheduler's state was copied within the run, copy.deepcopy(scheduler.__dict__), as "
    "StableDiffusionPanoramaPipeline does for each view: samples that take turns on one scheduler are not told apart; "
    "call disable_asced for such a pipeline, and in a loop of your own give each sample copy.deepcopy(scheduler)"
)

TURNS = (
    "a run on this scheduler began again before T_c of the one under way, without set_timesteps: samples that take "
    "turns on one scheduler are not told apart; give each loop copy.deepcopy(scheduler), or call set_timesteps before "
    "each run"
)

OFF = (
    "ASCED is off for this pipeline: its scheduler was replaced, or ASCED was disabled on the scheduler or on another "
    "pipeline that shares it; call enable_asced(pipe) again, or disable_asced(pipe) to go on without it"
)


class Told(set[str]):
    """The warnings given so far. Copies that a pipeline makes of its scheduler within its call share them."""

    def warn(self, message: str) -> None:
        """Log the message, unless that was done before."""
        if message not in self:
            self.add(message)
            logger.warning(message)

    def __deepcopy__(self, memo: dict) -> "Told":
        return self
