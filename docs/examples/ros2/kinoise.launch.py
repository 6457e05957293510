"""`ros2 launch kinoise.launch.py params:=FILE.yaml python:=VENV/bin/python`"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration

HERE = Path(__file__).resolve().parent


def generate_launch_description() -> LaunchDescription:
    node = [LaunchConfiguration("python"), str(HERE / "kinoise_node.py")]
    return LaunchDescription(
        [
            DeclareLaunchArgument("python", default_value="python3", description="has kinoise and rclpy"),
            DeclareLaunchArgument("params", default_value=str(HERE / "params.yaml"), description="topics and settings"),
            ExecuteProcess(cmd=[*node, "--ros-args", "--params-file", LaunchConfiguration("params")], output="screen"),
        ]
    )
