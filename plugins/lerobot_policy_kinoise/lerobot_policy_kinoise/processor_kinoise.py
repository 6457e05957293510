"""What LeRobot does to batches before the policy and to actions after it: names, a batch axis and the device; no numbers.

The normalisers are there because LeRobot's commands address them by name; with IDENTITY they pass everything on.
"""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from .configuration_kinoise import KinoiseConfig

Before = PolicyProcessorPipeline[dict[str, Any], dict[str, Any]]
After = PolicyProcessorPipeline[PolicyAction, PolicyAction]


def make_pre_post_processors(
    config: KinoiseConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[Before, After]:
    """The two pipelines; `dataset_stats` are only stored with them, as other policies' are."""
    features = {**(config.input_features or {}), **(config.output_features or {})}
    before = Before(
        steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=config.device or "cpu"),
            NormalizerProcessorStep(features=features, norm_map=config.normalization_mapping, stats=dataset_stats),
        ],
        name=POLICY_PREPROCESSOR_DEFAULT_NAME,
    )
    after = After(
        steps=[
            UnnormalizerProcessorStep(
                features=config.output_features or {}, norm_map=config.normalization_mapping, stats=dataset_stats
            ),
            DeviceProcessorStep(device="cpu"),
        ],
        name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after


# LeRobot looks for a function by the type's name.
make_kinoise_diffusion_pre_post_processors = make_pre_post_processors
make_kinoise_mode_pre_post_processors = make_pre_post_processors
make_kinoise_discrete_vla_pre_post_processors = make_pre_post_processors
