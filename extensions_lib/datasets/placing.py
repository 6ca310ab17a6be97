"""Where a picture lies in its bucket: to which size it is brought and what is cropped away."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from extensions_lib.datasets import buckets
from extensions_lib.datasets.buckets import Size
from extensions_lib.datasets.options import BucketOptions, bucket_ends, resolution_of
from extensions_lib.errors import CrucibleError


@dataclass(frozen=True)
class Placed:
    """A picture of `size` is resized to `resized`; the `bucket` is cut out of it at left, top.

    All in pixels, sizes as (width, height).
    """

    size: Size
    resized: Size
    bucket: Size
    left: int
    top: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """What is cut out of the resized picture: left, top, right, bottom."""
        return self.left, self.top, self.left + self.bucket[0], self.top + self.bucket[1]

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """What is seen of the picture as it was: left, top, right, bottom in its own pixels."""
        across, down = self.size[0] / self.resized[0], self.size[1] / self.resized[1]
        left, top, right, bottom = self.box
        return left * across, top * down, right * across, bottom * down

    @property
    def scale(self) -> float:
        """By how much the picture is enlarged; below 1 it is made smaller."""
        return math.sqrt(self.resized[0] * self.resized[1] / (self.size[0] * self.size[1]))

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's: original height, width; crop top, left; target height, width.

        The crop is where the picture is cut in truth (Podell et al. 2023, arXiv 2307.01952, 2.2);
        sd-scripts gives the borders of a picture fitted into the bucket instead.
        """
        width, height = self.size
        return height, width, self.top, self.left, self.bucket[1], self.bucket[0]

    def mirrored(self) -> Placed:
        """With left and right exchanged: what was cut away on the right is on the left."""
        return replace(self, left=self.resized[0] - self.left - self.bucket[0])

    def moved(self, across: float, down: float) -> Placed:
        """Cropped elsewhere: 0 to 1 from the left and from the top."""
        spare = self.resized[0] - self.bucket[0], self.resized[1] - self.bucket[1]
        left, top = (
            min(room, int(part * (room + 1)))
            for room, part in zip(spare, (across, down), strict=True)
        )
        return replace(self, left=left, top=top)


def place(size: Size, options: BucketOptions) -> Placed:
    """The place of a picture of this size (width, height).

    With bucket_no_upscale its own shape, made smaller where its area is over the resolution's, and
    cut to the step; else the nearest bucket. Raises CrucibleError for a picture that is too small.
    """
    if options.enable_bucket and options.bucket_no_upscale:
        resized = _no_larger(size, options)
        step = options.bucket_reso_steps
        bucket = resized[0] // step * step, resized[1] // step * step
        if not all(bucket):
            raise CrucibleError(
                f"{size[0]} × {size[1]} pixels are too few for buckets of {step} without"
                " enlarging (bucket_no_upscale)."
            )
    else:
        bucket = buckets.nearest(size, bucket_sizes(options))
        resized = _covering(size, bucket)
    left, top = (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2
    return Placed(size, resized, bucket, left, top)


def bucket_sizes(options: BucketOptions) -> list[Size]:
    """The buckets that there may be: one alone without enable_bucket. Not for no-upscale."""
    width, height = resolution_of(options)
    if not options.enable_bucket:
        return [(width, height)]
    least, most = bucket_ends(options)
    return list(_sizes(width * height, options.bucket_reso_steps, least, most))


@functools.lru_cache(maxsize=64)
def _sizes(area: int, step: int, least: int, most: int) -> tuple[Size, ...]:
    return tuple(buckets.sizes(area, step, least, most))


def _covering(size: Size, bucket: Size) -> Size:
    """The size of the picture's shape that just covers the bucket."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    width, height = (int(side * scale + 0.5) for side in size)
    return max(width, bucket[0]), max(height, bucket[1])


def _no_larger(size: Size, options: BucketOptions) -> Size:
    """The picture's size, or one of its shape and at most the resolution's area.

    Of the two ways to have one side at a multiple of the step, that which loses less of the shape.
    """
    width, height = resolution_of(options)
    area, step, shape = width * height, options.bucket_reso_steps, size[0] / size[1]
    if size[0] * size[1] <= area:
        return size

    def down(side: float) -> int:
        return int(side + 0.5) // step * step

    wide, high = down(math.sqrt(area * shape)), down(math.sqrt(area / shape))
    by_width = wide, down(wide / shape)
    by_height = down(high * shape), high
    if _off(by_width, shape) < _off(by_height, shape):
        return wide, int(wide / shape + 0.5)
    return int(high * shape + 0.5), high


def _off(bucket: Size, shape: float) -> float:
    return abs(math.log(bucket[0] / bucket[1] / shape)) if all(bucket) else math.inf
