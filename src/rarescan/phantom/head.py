"""An artificial head around the brain, so that skull stripping has something to strip.

`head_picture` puts a person's brain into a skull with scalp, face and neck, in template space;
`scan_head` shows it to a scanner. Everything is geometry: no real face is behind it.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from rarescan.cohort.contracts import BRAIN_BOX_LOW_MM, BRAIN_BOX_MM, FloatArray
from rarescan.cohort.template import load_template
from rarescan.phantom.anatomy import Brain
from rarescan.phantom.fields import pull, random_field
from rarescan.seeds import generator

HEAD_MM = 2.0
HEAD_LOW_MM = (-96.0, -132.0, -136.0)
HEAD_BOX_MM = (192.0, 256.0, 244.0)

_HULL_MM = 14.0
_SKIN_MM = 15.5
_SKULL_MM = 9.0
_NODE_MM = 6.0
_FIRST = tuple(int((b - h) / HEAD_MM) for b, h in zip(BRAIN_BOX_LOW_MM, HEAD_LOW_MM, strict=True))
_BRAIN = tuple(slice(a, a + int(n / HEAD_MM)) for a, n in zip(_FIRST, BRAIN_BOX_MM, strict=True))
_Mask = npt.NDArray[np.bool_]


class _Place:
    """Millimetres of the head box, and simple shapes in it."""

    def __init__(self) -> None:
        axes = [
            low + HEAD_MM * (np.arange(int(edge / HEAD_MM)) + 0.5)
            for low, edge in zip(HEAD_LOW_MM, HEAD_BOX_MM, strict=True)
        ]
        self.x, self.y, self.z = np.meshgrid(*axes, indexing="ij", sparse=True)

    def ellipsoid(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float]
    ) -> _Mask:
        """Return an ellipsoid on the right and its mirror image on the left."""
        across = (np.abs(self.x) - centre[0]) / radii[0]
        inside = across**2 + ((self.y - centre[1]) / radii[1]) ** 2
        mask: _Mask = inside + ((self.z - centre[2]) / radii[2]) ** 2 < 1
        return mask

    def column(self, y_mm: float, radii: tuple[float, float], top_mm: float) -> _Mask:
        """Return an upright elliptic column around the midline, from below up to `top_mm`."""
        inside = (self.x / radii[0]) ** 2 + ((self.y - y_mm) / radii[1]) ** 2 < 1
        mask: _Mask = inside & (self.z < top_mm)
        return mask


@cache
def surroundings() -> tuple[torch.Tensor, torch.Tensor]:
    """Return everything around the brain at 2 mm: solid brightness, and the share of fluid."""
    place = _Place()
    brain = np.zeros(tuple(int(e / HEAD_MM) for e in HEAD_BOX_MM), dtype=bool)
    brain[_BRAIN] = load_template(HEAD_MM).brain > 0.5
    hull = _distance_mm(_distance_mm(brain) > _HULL_MM) > _HULL_MM
    outside = _distance_mm(hull) * _thickness()
    body = (
        (outside < _SKIN_MM)
        | place.ellipsoid((0, 36, -62), (62, 58, 58))
        | place.ellipsoid((0, 93, -50), (11, 19, 24))
        | place.column(-28, (58, 60), -50)
    )
    under_skin = _distance_mm(~body)
    soft = np.interp(under_skin, [0, 1, 3, 6, 9], [0, 0.5, 0.95, 0.9, 0.5])
    skull = np.interp(outside, [0, 2, 3.5, 5.5, 7, 8.5], [0.25, 0.08, 0.08, 0.6, 0.1, 0.06])
    solid = np.where(outside < _SKULL_MM, skull, soft) * ~hull
    fluid = hull.astype(np.float64)
    _add_face(place, solid, fluid, outside > _SKULL_MM)
    # The coil ends below the chin.
    reach = 0.5 + 0.5 * np.tanh((place.z + 112) / 16)
    texture = 1 + 0.06 * _fixed_field("texture", 9)
    return _smooth(solid * reach * texture), _smooth(fluid * reach)


def _add_face(
    place: _Place, solid: FloatArray, fluid: npt.NDArray[np.float64], free: _Mask
) -> None:
    """Draw orbits, airways and the spine where no skull or brain is."""
    shapes: list[tuple[_Mask, float, float]] = [
        (place.ellipsoid((32, 52, -36), (19, 24, 18)), 0.9, 0),
        (place.ellipsoid((32, 58, -37), (12, 12, 12)), 0.0, 0.8),
        (place.ellipsoid((0, 62, -48), (9, 30, 16)), 0.05, 0),
        (place.ellipsoid((25, 54, -62), (12, 15, 13)), 0.04, 0),
        (place.ellipsoid((0, 52, -88), (34, 32, 7)), 0.3, 0),
        (place.column(14, (9, 6), -62), 0.03, 0),
        (place.column(-24, (17, 14), -78), 0.1, 0),
        (place.column(-24, (14, 11), -78), 0.6, 0),
        (place.column(-46, (9, 9), -74), 0.0, 1.0),
        (place.column(-46, (5, 5), -74), 0.75, 0),
    ]
    for mask, brightness, share in shapes:
        solid[mask & free], fluid[mask & free] = brightness, share


def _distance_mm(mask: _Mask) -> npt.NDArray[np.float64]:
    distance: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~mask, sampling=HEAD_MM)
    return distance


def _fixed_field(name: str, node_mm: float) -> FloatArray:
    shape = tuple(int(edge / HEAD_MM) for edge in HEAD_BOX_MM)
    rng = generator(0, "phantom", "head", name)
    field = random_field(rng, (shape[0], shape[1], shape[2]), node_mm, box_mm=HEAD_BOX_MM)
    values: FloatArray = field[0].numpy()
    return values


def _thickness() -> FloatArray:
    """Return how much thinner than average skull and scalp are, about 0.8 to 1.25."""
    factor: FloatArray = np.exp(0.12 * _fixed_field("thickness", 45)).clip(0.75, 1.3)
    return factor


def _smooth(values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(values.astype(np.float32), 0.6))


@cache
def ball() -> torch.Tensor:
    """Return what a technician scans to test the scanner, shape (1, 96, 128, 122)."""
    place = _Place()
    return _smooth(0.8 * place.ellipsoid((0, -14, 6), (85, 85, 85)))[None]


def head_picture(
    brain: Brain, brightness: npt.NDArray[np.float64], *, solid: float, blur_mm: float
) -> torch.Tensor:
    """Return a person's head in template space.

    Parameters
    ----------
    brain : Brain
        At 2 mm.
    brightness : float64 array, shape (3,)
        Of grey matter, white matter and fluid.
    solid : float
        Factor of everything that is neither brain nor fluid.
    blur_mm : float
        Standard deviation of the scanner's blur.

    Returns
    -------
    float32 tensor, shape (1, 96, 128, 122)
    """
    solids, fluids = surroundings()
    head = solid * solids + float(brightness[2]) * fluids
    head[_BRAIN] *= 1 - brain.maps.extent
    head[_BRAIN] += brain.seen(brightness)
    if blur_mm > 0:
        head = torch.from_numpy(ndimage.gaussian_filter(head.numpy(), blur_mm / HEAD_MM))
    return head[None]


def scan_head(
    picture: torch.Tensor,
    shape: torch.Tensor,
    pose: npt.NDArray[np.float64],
    voxels: npt.NDArray[np.float64],
    size: tuple[int, int, int],
) -> torch.Tensor:
    """Return what a scanner's voxels see of a head: the one interpolation of its voxels.

    Parameters
    ----------
    picture : float32 tensor, shape (1, 96, 128, 122)
        The head in template space.
    shape : float32 tensor, shape (3, 40, 48, 40)
        The person's pull-back.
    pose : float64 array, shape (4, 4)
        Template space before deformation -> scanner, RAS mm.
    voxels : float64 array, shape (4, 4)
        Voxel index -> scanner, RAS mm.
    size : tuple of int
        Voxels.

    Returns
    -------
    float32 tensor of that size
    """
    there = _where(shape, np.linalg.inv(pose) @ voxels, size)
    return pull(picture, there, padding="zeros")[0]


def _where(
    shape: torch.Tensor, to_person: npt.NDArray[np.float64], size: tuple[int, int, int]
) -> torch.Tensor:
    """Return where in the head box each voxel looks: exact every 6 mm, linear between.

    The way there is smooth, and asking for it at every voxel would cost more than the image.
    """
    steps_mm = np.linalg.norm(to_person[:3, :3], axis=0)
    nodes = [min(n, int((n - 1) * s / _NODE_MM) + 2) for n, s in zip(size, steps_mm, strict=True)]
    axes = [np.linspace(0, n - 1, m) for n, m in zip(size, nodes, strict=True)]
    index = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1)).float()
    mm = index @ torch.from_numpy(to_person[:3, :3].T).float()
    mm += torch.from_numpy(to_person[:3, 3]).float()
    moved_mm = pull(shape, _to_box(mm, BRAIN_BOX_LOW_MM, BRAIN_BOX_MM)).permute(1, 2, 3, 0)
    mm += moved_mm.flip(-1) * torch.tensor(BRAIN_BOX_MM) / 2
    there = _to_box(mm, HEAD_LOW_MM, HEAD_BOX_MM).permute(3, 0, 1, 2)[None]
    packed = there.contiguous(memory_format=torch.channels_last_3d)
    full = interpolate(packed, size=size, mode="trilinear", align_corners=True)
    return full[0].permute(1, 2, 3, 0)


def _to_box(mm: torch.Tensor, low_mm: tuple[float, ...], box_mm: tuple[float, ...]) -> torch.Tensor:
    """Return millimetres as places in a box, z, y, x from -1 to 1."""
    return ((mm - torch.tensor(low_mm)) * 2 / torch.tensor(box_mm) - 1).flip(-1)
