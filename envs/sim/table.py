"""The robot on the table, as a value: what it shows and takes. It needs no simulator."""

from envs.types import ActionSpec, CameraSpec, Spec, StateSpec

TABLE_HEIGHT = 0.8  # metres

SPEC = Spec(
    cameras=(CameraSpec("main", 64, 64, posed=True), CameraSpec("wrist", 32, 32, posed=True)),
    state=(
        StateSpec("gripper.x", -0.4, 0.4, "m"), StateSpec("gripper.y", -0.4, 0.4, "m"),
        StateSpec("gripper.z", 0.7, 1.4, "m"),
        # a rotation vector relative to pointing down
        StateSpec("gripper.rx", -1.0, 1.0, "rad"), StateSpec("gripper.ry", -1.0, 1.0, "rad"),
        StateSpec("gripper.rz", -1.0, 1.0, "rad"),
        StateSpec("gripper.opening", 0.0, 0.09, "m"),
    ),
    action=(
        # OSC_POSE: 1 puts the target 5 cm or 0.5 rad ahead
        ActionSpec("dx"), ActionSpec("dy"), ActionSpec("dz"), ActionSpec("drx"), ActionSpec("dry"), ActionSpec("drz"),
        ActionSpec("gripper", gripper=True),
    ),
    control_hz=20,
    keypoints=("near left corner or cube", "near right corner", "far left corner", "far right corner"),
    workspace=((-0.4, -0.4, 0.7), (0.4, 0.4, 1.4)),
)  # fmt: skip
