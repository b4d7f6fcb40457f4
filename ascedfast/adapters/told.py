# SPDX-License-Identifier: MIT
"""Warnings of an enabled scheduler, each given once."""

import logging

logger = logging.getLogger("ascedfast")

SHARED = (
    "ASCED is enabled on another pipeline that shares this scheduler: this run is left alone; for a loop of your own, "
    "enable it on the scheduler"
)
COPIED = (
    "the pipeline steps copies of its scheduler, made within its call (as of LTX2 for its sound, of SkyReels for each "
    "frame): what they step is left alone"
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


class Told(set[str]):
    """The warnings given so far. Copies that a pipeline makes of its scheduler within its call share them."""

    def warn(self, message: str) -> None:
        """Log the message, unless that was done before."""
        if message not in self:
            self.add(message)
            logger.warning(message)

    def __deepcopy__(self, memo: dict) -> "Told":
        return self
