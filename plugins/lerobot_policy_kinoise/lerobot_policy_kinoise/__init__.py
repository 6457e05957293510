"""kinoise's policies as LeRobot's: `--policy.type=kinoise_diffusion`, `kinoise_mode` or `kinoise_discrete_vla`.

LeRobot's commands import every distribution whose name begins with `lerobot_policy_`; that import registers the three types.
"""

from .operators import lend_operators

lend_operators()

from .configuration_kinoise import (  # noqa: E402 - LeRobot imports torchvision
    KinoiseConfig,
    KinoiseDiffusionConfig,
    KinoiseDiscreteVlaConfig,
    KinoiseModeConfig,
)
from .modeling_kinoise import (  # noqa: E402
    KinoiseDiffusionPolicy,
    KinoiseDiscreteVlaPolicy,
    KinoiseModePolicy,
    KinoisePolicy,
)
from .processor_kinoise import (  # noqa: E402
    make_kinoise_diffusion_pre_post_processors,
    make_kinoise_discrete_vla_pre_post_processors,
    make_kinoise_mode_pre_post_processors,
)

__all__ = [
    "KinoiseConfig",
    "KinoiseDiffusionConfig",
    "KinoiseModeConfig",
    "KinoiseDiscreteVlaConfig",
    "KinoisePolicy",
    "KinoiseDiffusionPolicy",
    "KinoiseModePolicy",
    "KinoiseDiscreteVlaPolicy",
    "make_kinoise_diffusion_pre_post_processors",
    "make_kinoise_mode_pre_post_processors",
    "make_kinoise_discrete_vla_pre_post_processors",
]
