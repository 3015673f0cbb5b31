"""Pipelines of degradation: the steps that turn ground truth into low-resolution frames.

A pipeline is a list of steps. A setting of a step is a number, or a range `[least, most]` from
which a value is drawn once for each clip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from fedvsr.lookup import did_you_mean
from fedvsr.section import NAME, Section, short
from fedvsr.seeding import generator

Kernel = Literal["bicubic", "bilinear", "area", "nearest", "bd"]


def _as_range(value: object) -> object:
    """A number as the range of that number alone; a range must ascend."""
    if not isinstance(value, list | tuple):
        return value, value
    if len(value) == 2 and all(isinstance(n, int | float) for n in value) and value[0] > value[1]:
        raise ValueError("give the smaller number of the range first")
    return value


def _as_names(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


# A range from the least to the most, which may be given as one number.
_FROM_NUMBER = BeforeValidator(_as_range)
_Sigma = Annotated[float, Field(ge=0.1, le=10)]
_Degrees = Annotated[float, Field(ge=0, le=180)]
_Factor = Annotated[float, Field(ge=0.1, le=2)]
_Levels = Annotated[float, Field(ge=0, le=255)]
_Photons = Annotated[float, Field(ge=1, le=1e6)]
_Quality = Annotated[int, Field(ge=1, le=95)]
_Quantiser = Annotated[int, Field(ge=0, le=51)]
_Kernels = Annotated[tuple[Kernel, ...], BeforeValidator(_as_names), Field(min_length=1)]
_Resizing = Annotated[
    tuple[Literal["bicubic", "bilinear", "area", "nearest"], ...],
    BeforeValidator(_as_names),
    Field(min_length=1),
]


class Step(Section):
    """A step of a pipeline."""

    step: str

    def drawn(self, seed: int, *scope: str | int) -> dict[str, Any]:
        """The step's settings with a value for each range and list, drawn from seeds of its own.

        Args:
            seed: the root seed.
            scope: what the draw is for: a clip, and the step's place in the pipeline.
        """
        values = dict[str, Any]()
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple):
                rng = generator(seed, "degradation", *scope, name)
                if isinstance(value[0], str):
                    value = value[int(rng.integers(len(value)))]
                elif isinstance(value[0], int):
                    value = int(rng.integers(value[0], value[1] + 1))
                else:
                    value = float(rng.uniform(*value))
            values[name] = value
        return values


class Blur(Step):
    """Gaussian blur."""

    step: Literal["blur"] = "blur"
    sigma: Annotated[tuple[_Sigma, _Sigma], _FROM_NUMBER] = Field(
        (1.6, 1.6), description="Standard deviation in pixels of the frames at this step."
    )
    sigma_y: Annotated[tuple[_Sigma, _Sigma], _FROM_NUMBER] | None = Field(
        None, description="The same across the first direction (default: equal in all directions)."
    )
    angle: Annotated[tuple[_Degrees, _Degrees], _FROM_NUMBER] = Field(
        (0.0, 0.0), description="Degrees by which the first direction is turned from the rows."
    )

    def model_post_init(self, _: object) -> None:
        """Check that the angle has an effect."""
        if self.sigma_y is None and self.angle != (0.0, 0.0):
            raise ValueError("angle has no effect without sigma_y; leave it out")


class Downscale(Step):
    """Reduce frames to the low-resolution size: that of the ground truth, divided by the scale."""

    step: Literal["downscale"] = "downscale"
    kernel: _Kernels = Field(("bicubic",), description="Filter, or a list to draw it from.")


class Resize(Step):
    """Resize frames by a factor, before `downscale` makes them their last size."""

    step: Literal["resize"] = "resize"
    factor: Annotated[tuple[_Factor, _Factor], _FROM_NUMBER] = Field(
        description="Factor of height and width."
    )
    kernel: _Resizing = Field(("bicubic",), description="Filter, or a list to draw it from.")


class GaussianNoise(Step):
    """Add Gaussian noise that is independent in each sample."""

    step: Literal["gaussian_noise"] = "gaussian_noise"
    sigma: Annotated[tuple[_Levels, _Levels], _FROM_NUMBER] = Field(
        description="Standard deviation, in levels of 255."
    )


class PoissonNoise(Step):
    """Count photons: each sample becomes a Poisson draw with its brightness as the mean."""

    step: Literal["poisson_noise"] = "poisson_noise"
    photons: Annotated[tuple[_Photons, _Photons], _FROM_NUMBER] = Field(
        description="Mean count of a white sample; fewer are noisier."
    )


class Jpeg(Step):
    """Compress each frame as a JPEG."""

    step: Literal["jpeg"] = "jpeg"
    quality: Annotated[tuple[_Quality, _Quality], _FROM_NUMBER] = Field(
        description="Quality of libjpeg; lower is worse."
    )


class Codec(Step):
    """Compress the clip as a video with a fixed quantiser."""

    step: Literal["h264", "h265"]
    qp: Annotated[tuple[_Quantiser, _Quantiser], _FROM_NUMBER] = Field(
        description="Quantiser; higher is worse."
    )


AnyStep = Blur | Downscale | Resize | GaussianNoise | PoissonNoise | Jpeg | Codec
Pipeline: TypeAlias = tuple[AnyStep, ...]

_KINDS: dict[str, type[AnyStep]] = {
    "blur": Blur,
    "downscale": Downscale,
    "resize": Resize,
    "gaussian_noise": GaussianNoise,
    "poisson_noise": PoissonNoise,
    "jpeg": Jpeg,
    "h264": Codec,
    "h265": Codec,
}
_RESIZING = ("bicubic", "bilinear", "area")

READY: dict[str, Pipeline] = {
    "bi": (Downscale(),),
    "bd": (Downscale(kernel=("bd",)),),
    "blur_noise": (
        Blur(sigma=(0.6, 3)),
        Downscale(),
        GaussianNoise(sigma=(3, 15)),
    ),
    "compressed": (Downscale(), Codec(step="h264", qp=(28, 38))),
    "second_order": (
        Blur(sigma=(0.4, 3), sigma_y=(0.4, 3), angle=(0, 180)),
        Resize(factor=(0.4, 1.2), kernel=_RESIZING),
        GaussianNoise(sigma=(1, 10)),
        Jpeg(quality=(50, 95)),
        Blur(sigma=(0.2, 1.2)),
        Downscale(kernel=_RESIZING),
        PoissonNoise(photons=(300, 3000)),
        Codec(step="h264", qp=(24, 34)),
    ),
}
"""The pipelines that have names: low-resolution frames of papers, and harder ones."""

Degradation: TypeAlias = str | list[Any] | dict[str, Any]
"""What `data.degradation` may be: a name of `READY`, steps, or several of these by names.

Null in place of a pipeline leaves out one that an extended file has.
"""
ONE = "steps"
"""The name of a pipeline that is given as a list alone."""


def pipelines(degradation: Degradation) -> dict[str, Pipeline]:
    """The pipelines of `data.degradation` by their names.

    Raises:
        ValueError: it is no pipeline; the message says where and why.
    """
    if isinstance(degradation, str):
        return {degradation: _pipeline(degradation, "")}
    if isinstance(degradation, Sequence):
        return {ONE: _pipeline(degradation, "")}
    degradation = {name: own for name, own in degradation.items() if own is not None}
    if not degradation:
        raise ValueError("{} holds no pipeline: name some, as {clean: bi, noisy: blur_noise}")
    for name in degradation:
        if not re.fullmatch(NAME, str(name)) or len(str(name)) > 40:
            raise ValueError(
                f"{short(name)} is no name of a pipeline: give letters, digits, _, . and -, at "
                "most 40"
            )
    return {str(name): _pipeline(own, f"{name}: ") for name, own in degradation.items()}


def require_scale(of_names: Mapping[str, Pipeline], scale: int) -> None:
    """Check that frames end with the low-resolution size.

    Raises:
        ValueError: a pipeline lacks `downscale`, or cannot reduce by this scale.
    """
    for name, steps in of_names.items():
        kinds = [step.step for step in steps]
        last = len(kinds) - 1 - kinds[::-1].index("downscale") if "downscale" in kinds else -1
        if last < 0 and (scale > 1 or "resize" in kinds):
            raise ValueError(
                f"{name} does not end with the low-resolution size: add {{step: downscale}}"
            )
        if "resize" in kinds[last + 1 :]:
            raise ValueError(f"{name} resizes frames after the last downscale; put it before")
        blurred = [step for step in steps if isinstance(step, Downscale) and "bd" in step.kernel]
        if blurred and scale not in (2, 3, 4, 8):
            raise ValueError(
                f"{name} has the kernel bd, which exists for x2, x3, x4, x8, not x{scale}; choose "
                "bicubic, area or bilinear"
            )


def _pipeline(value: object, where: str) -> Pipeline:
    if isinstance(value, str):
        if value not in READY:
            raise ValueError(
                f"{where}{short(value, quoted=False)} is no ready-made pipeline"
                f"{did_you_mean(value, READY)} (there are: {', '.join(READY)})"
            )
        return READY[value]
    if not isinstance(value, Sequence) or not value:
        raise ValueError(
            f"{where}{short(value)} is no pipeline: give a name ({', '.join(READY)}) or a list of "
            "steps, as [{step: downscale}, {step: jpeg, quality: [40, 90]}]"
        )
    return tuple(_step(one, f"{where}step {i}") for i, one in enumerate(value, 1))


def _step(value: object, where: str) -> AnyStep:
    if not isinstance(value, Mapping) or "step" not in value:
        raise ValueError(
            f"{where} = {short(value)}: give settings in it, as {{step: jpeg, quality: 60}}"
        )
    kind = _KINDS.get(name := str(value["step"]))
    if kind is None:
        raise ValueError(
            f"{where}: {short(name, quoted=False)} is no step{did_you_mean(name, _KINDS)} (there "
            f"are: {', '.join(_KINDS)})"
        )
    try:
        return TypeAdapter(kind).validate_python(dict(value))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        key = str(first["loc"][0]) if first["loc"] else ""
        given = f"{key} = {short(value[key])}: " if key in value else f"{key}: " if key else ""
        raise ValueError(f"{where} ({name}): {given}{message[:1].lower()}{message[1:]}") from None
