"""What surrounds a Jacobian: memory that is measured and runs out, output directions, and maps that cannot be differentiated."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffprobe.measures.geometry import (
    directions,
    jacobian,
    jacobian_spectrum,
    jacobian_trace,
    local_complexity,
    projected_jacobian,
    rounding_floor,
    rows_that_fit,
)
from diffprobe.measures.geometry import memory as rooms
from diffprobe.measures.geometry.memory import footprint
from tests.test_geometry_jacobian import Z, matrix, silu_net


def test_what_a_row_keeps_is_counted() -> None:
    """The input of each of two products and of tanh's derivative: 12, 100 and 100 numbers; the weights are no row's."""
    first, last = (matrix(*shape).requires_grad_(False) for shape in ((100, 12), (7, 100)))

    def f(x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ first.T) @ last.T

    assert footprint(f, Z).kept == 8 * 100
    assert footprint(lambda x: f(x).exp() * 2, Z).kept == 8 * (100 + 7)
    first.requires_grad_()
    assert footprint(f, Z).kept == 8 * (100 + 12)
    assert footprint(f, Z)[1:] == (7, torch.float64, Z.device)


def test_rows_grow_with_memory_and_stop_where_more_is_no_faster() -> None:
    big = matrix(10_000, 12)

    def f(x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ big.T)

    row = footprint(f, Z).kept
    assert row == 80_000
    found = [rows_that_fit(f, Z, memory=memory) for memory in (0, 80_000 * 8, 80_000 * 80, 80_000 * 800, 10**15)]
    assert found == [1, 1, 10, 100, 512]
    assert rows_that_fit(f, Z) in range(100, 513)
    wide = matrix(10, 12)
    assert rows_that_fit(lambda x: torch.tanh((x.flatten(1) @ wide.T).repeat(1, 50_000)), Z, memory=10**15) == (64 << 20) // 4_000_000


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
@pytest.mark.parametrize("limit", [2, 3, 5])
def test_out_of_memory_halves_the_batch(error: Exception, limit: int) -> None:
    sizes = []

    def f(x: Tensor) -> Tensor:
        if len(x) > limit:
            raise error
        sizes.append(len(x))
        return silu_net(x)

    measures: list[Callable[[Callable[[Tensor], Tensor]], Tensor]] = [
        lambda f: jacobian_spectrum(f, Z, rows=64),
        lambda f: jacobian_spectrum(f, Z, directions(40, 5), rows=64),
        lambda f: jacobian_trace(f, Z, range(3)).trace,
    ]
    for measure in measures:
        sizes.clear()
        assert torch.allclose(measure(f), measure(silu_net), rtol=1e-10)
        assert sizes[:2] == [1, 2], "what a row keeps"
        assert max(sizes[2:]) * 2 > limit


def test_one_row_too_large_is_a_clear_line() -> None:
    calls: list[int] = []

    def f(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) > 2:  # what it keeps can be measured, but not held
            raise torch.OutOfMemoryError("CUDA out of memory")
        return silu_net(x)

    with pytest.raises(MemoryError, match="one latent alone exceeds the memory"):
        projected_jacobian(f, Z, directions(40, 5), rows=16)
    assert calls == [1, 2, 12, 6, 4, 2, 1]

    def never(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="one latent alone exceeds the memory"):
        jacobian_spectrum(never, Z)


def test_other_errors_of_the_map_are_not_swallowed() -> None:
    def f(x: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        jacobian_spectrum(f, Z)


def test_a_jacobian_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_memory", lambda _: 6 * 40 * 12 * (8 + 8))  # room for one with its copy in float64
    with pytest.raises(MemoryError, match=r"the Jacobian would take 0.0 GiB: take fewer latents, or project"):
        jacobian(silu_net, Z)
    assert jacobian_spectrum(silu_net, Z).shape == (6, 12)
    monkeypatch.setattr(rooms, "_memory", lambda _: 6 * 40 * 12 * (8 + 8) - 1)
    with pytest.raises(MemoryError, match="project it on directions"):
        jacobian_spectrum(silu_net, Z)


def test_a_row_that_is_known_not_to_fit_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def f(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.flatten(1).repeat(1, 100).tanh()

    row = 8 * 1200
    for memory, rows in ((2 * row, [1, 2]), (2 * row - 1, [1])):  # a second row only where both fit
        monkeypatch.setattr(rooms, "_memory", lambda _, memory=memory: memory)
        calls.clear()
        assert footprint(f, Z).kept == row
        assert calls == rows
    monkeypatch.setattr(rooms, "_memory", lambda _: row - 1)
    calls.clear()
    with pytest.raises(MemoryError, match="one latent alone exceeds the memory"):
        jacobian_spectrum(f, Z, directions(1200, 2))
    assert calls == [1]


def test_neighbourhoods_that_memory_cannot_hold_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's input and output of a relu of 6 numbers: 96 bytes, and 8 vertices a neighbourhood; batches take an eighth."""
    seen = list[int]()

    def f(z: Tensor) -> Tensor:
        seen.append(len(z))
        return z.relu()

    for memory, sizes in ((96 * 8 * 16, [2, 16, 16, 8]), (96 * 8, [2, *[8] * 5])):
        seen.clear()
        monkeypatch.setattr(rooms, "_memory", lambda _, memory=memory: memory)
        local_complexity(f, matrix(5, 6), 0.1, 4)
        assert seen == sizes
    seen.clear()
    monkeypatch.setattr(rooms, "_memory", lambda _: 96 * 8 - 1)
    with pytest.raises(MemoryError, match="one latent alone exceeds the memory"):
        local_complexity(f, matrix(5, 6), 0.1, 4)
    assert seen == [2]


def test_out_of_memory_halves_the_neighbourhoods() -> None:
    def f(z: Tensor) -> Tensor:
        if len(z) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return z.relu()

    assert torch.equal(local_complexity(f, matrix(9, 6), 0.1, 4).count, local_complexity(torch.relu, matrix(9, 6), 0.1, 4).count)
    with pytest.raises(MemoryError, match="one latent alone"):
        local_complexity(f, matrix(9, 12), 0.1, 12)


def test_counting_leaves_nothing_behind() -> None:
    kept: list[weakref.ref[Tensor]] = []

    def f(x: Tensor) -> Tensor:
        y = x.exp()  # keeps its own output
        kept.append(weakref.ref(y))
        return y.tanh()

    gc.disable()
    try:
        footprint(f, Z)
        assert [one() for one in kept] == [None, None]
    finally:
        gc.enable()


CUDNN: Any = torch.backends.cudnn


class Watched(torch.autograd.Function):
    """Doubles, and notes how convolutions would round meanwhile, in every mode."""

    found: ClassVar[list[str]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Watched.found.append("forward " + CUDNN.conv.fp32_precision)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Watched.found.append("backward " + CUDNN.conv.fp32_precision)
        return 2 * gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        Watched.found.append("jvp " + CUDNN.conv.fp32_precision)
        return 2 * tangent


@pytest.mark.skipif(not hasattr(CUDNN, "conv"), reason="this torch has the older switch alone")
def test_float32_is_not_rounded_in_any_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch alone, which a processor without an accelerator has too."""

    def f(x: Tensor) -> Tensor:
        return silu_net(Watched.apply(x))  # type: ignore[no-untyped-call]

    before = CUDNN.conv.fp32_precision
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    measures: dict[str, tuple[Callable[[], object], set[str]]] = {
        "whole": (lambda: jacobian(f, Z), {"forward", "backward", "jvp"}),
        "projected": (lambda: projected_jacobian(f, Z, directions(40, 5)), {"forward", "backward"}),
        "trace": (lambda: jacobian_trace(f, Z, range(2)), {"forward", "backward", "jvp"}),
        "rows": (lambda: rows_that_fit(f, Z), {"forward", "backward"}),
        "complexity": (lambda: local_complexity(f, Z, 0.1, 2), {"forward"}),
        "floor": (lambda: rounding_floor(f, Z, 2), {"forward"}),
    }
    assert before != "ieee"
    for name, (measure, passes) in measures.items():
        Watched.found.clear()
        measure()
        assert set(Watched.found) == {f"{one} ieee" for one in passes}, name
        assert CUDNN.conv.fp32_precision == before
    with pytest.raises(ValueError, match="one floating-point tensor"):
        rows_that_fit(lambda x: (f(x),), Z)  # type: ignore[arg-type, return-value]
    assert CUDNN.conv.fp32_precision == before


def test_rows_that_depend_on_one_another() -> None:
    network = nn.Sequential(nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9), nn.SiLU()).double()
    for measure in (jacobian, jacobian_spectrum, rows_that_fit, lambda f, z: jacobian_trace(f, z, range(2))):
        with pytest.raises(ValueError, match=r"depend on one another.*set the network to eval\(\)"):
            measure(network.train(), Z)
        measure(network.eval(), Z)
    with pytest.raises(ValueError, match="depend on one another"):
        jacobian(lambda x: x - 1e-3 * x.mean(0), Z)


def test_a_map_that_overflows_off_its_first_row_is_not_taken_for_one_that_mixes_rows() -> None:
    limit = 1.2 * float(Z[0].abs().max())
    assert footprint(lambda x: x * torch.where(x.abs() < limit, 1.0, torch.nan), Z).outputs == 12


def test_directions_are_orthonormal_and_of_their_seed() -> None:
    for outputs, k in ((40, 1), (40, 12), (500, 100), (20, 20), (1, 1)):
        w = directions(outputs, k)
        assert w.shape == (k, outputs)
        assert w.dtype == torch.float32
        assert torch.allclose(w.double() @ w.double().T, torch.eye(k).double(), atol=1e-6)
    assert torch.equal(directions(50, 7, 3), directions(50, 7, 3))
    assert not torch.allclose(directions(50, 7, 3), directions(50, 7, 4))
    for fewer, more in ((5, 10), (10, 40), (12, 13)):  # 50 outputs: above 12 by another decomposition
        assert torch.allclose(directions(50, fewer), directions(50, more)[:fewer], atol=1e-6)
    for k in (0, 11):
        with pytest.raises(ValueError, match="choose 1 to 10"):
            directions(10, k)


def test_directions_are_uniform_on_the_sphere() -> None:
    """E w_i w_j = d_ij/D for every row, and signs are even: without QR's signs fixed the first entry would always be negative."""
    many = torch.stack([directions(6, 3, seed) for seed in range(4000)]).double()
    second = torch.einsum("nki,nkj->kij", many, many) / 4000
    assert float((second - torch.eye(6) / 6).abs().max()) < 0.015
    assert float(many.mean(0).abs().max()) < 0.03


def test_an_empty_batch_has_no_rows() -> None:
    none = Z[:0]
    assert jacobian(silu_net, none).shape == (0, 40, 12)
    assert projected_jacobian(silu_net, none, directions(40, 3)).shape == (0, 3, 12)
    assert jacobian_spectrum(silu_net, none).shape == (0, 12)
    assert jacobian_spectrum(silu_net, none, directions(40, 3)).shape == (0, 3)
    assert jacobian_trace(silu_net, none, [0]).trace.shape == (0,)
    assert rows_that_fit(silu_net, none) == 512


@torch.no_grad()
def under_no_grad(x: Tensor) -> Tensor:
    return silu_net(x)


BAD: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "no gradient": (under_no_grad, "no gradient: run it without torch.no_grad"),
    "detached": (lambda x: silu_net(x).detach(), "no gradient: run it without"),
    "numpy": (lambda x: torch.from_numpy(np.asarray(silu_net(x).detach())), "no gradient: run it without"),
    "integers": (lambda x: (255 * silu_net(x)).to(torch.uint8), "one floating-point tensor"),
    "a tuple": (lambda x: (silu_net(x),), "one floating-point tensor .* not tuple: wrap it"),
    "one row": (lambda x: silu_net(x).sum(0), "a row for each latent: . latents gave"),
    "a number": (lambda x: silu_net(x).sum(), "a row for each latent"),
    "a constant": (lambda x: torch.ones(len(x), 40, requires_grad=True).clone(), "does not depend on the latents"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_maps_that_cannot_be_differentiated(name: str) -> None:
    f, line = BAD[name]
    with pytest.raises(ValueError, match=line) as caught:
        jacobian_spectrum(f, Z, directions(40, 5))
    assert "\n" not in str(caught.value)


def test_a_map_whose_weights_are_inference_tensors() -> None:
    with torch.inference_mode():
        weights = matrix(40, 12) + 0
    with pytest.raises(ValueError, match="load its weights outside"):
        jacobian_spectrum(lambda x: torch.tanh(x.flatten(1)) @ weights.T, Z, directions(40, 5))


def test_bad_latents_and_directions() -> None:
    for z in (torch.zeros(3), torch.zeros(3, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="latents must be floating-point rows"):
            jacobian_spectrum(silu_net, z)
    for w in (torch.ones(3, 39), torch.ones(40), torch.ones(0, 40), torch.ones(3, 40, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"directions must be \[k, 40\]"):
            jacobian_spectrum(silu_net, Z, w)
    with pytest.raises(ValueError, match="41 directions of 40 outputs: take at most 40"):
        projected_jacobian(silu_net, Z, torch.ones(41, 40))
