"""The house's floors: a file imports only from its own floor or below, there is no cycle, and some things live in one file."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "diffprobe"
FLOORS = {
    0: ("errors", "files", "rng", "measures", "worlds"),
    1: ("paths", "model", "sampling", "inversion", "images", "manifest"),
    2: ("adapters",),
    3: ("probes", "controls"),
    4: ("report",),
    5: ("runs",),
    6: (
        "__main__",
        "cli",
        "running",
        "examining",
        "morphing",
        "exporting",
        "cookbook",
        "export",
        "terminal",
        "doctor",
        "validate",
        "subset",
    ),
}
MODULES = {
    ".".join(("diffprobe", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}


def floor(module: str) -> int:
    part = module.split(".")[1]
    return next(level for level, parts in FLOORS.items() if part in parts)


def imports(path: Path, module: str) -> set[str]:
    """The modules of the package that a file imports anywhere, TYPE_CHECKING and function bodies included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
    return {name for name in found if name == "diffprobe" or name.startswith("diffprobe.")} - {module}


GRAPH = {name: imports(path, name) for name, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"diffprobe"}))
def test_imports_point_downwards_and_never_to_the_root(module: str) -> None:
    assert "diffprobe" not in GRAPH[module], "imports the package root"
    upward = {other for other in GRAPH[module] if floor(other) > floor(module)}
    assert not upward, f"{module} (floor {floor(module)}) imports upwards: {upward}"


def test_every_top_level_module_has_a_floor() -> None:
    placed = {part for parts in FLOORS.values() for part in parts}
    assert {name.split(".")[1] for name in MODULES if name != "diffprobe"} <= placed


def test_probes_do_not_see_adapters() -> None:
    assert not [m for m in GRAPH if m.startswith("diffprobe.probes") and any(o.startswith("diffprobe.adapters") for o in GRAPH[m])]


def test_there_is_no_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in GRAPH.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in GRAPH:
        if module != "diffprobe":
            visit(module, ())


def test_ray_is_imported_in_one_file_at_most() -> None:
    using = [path for path in MODULES.values() if any(name.split(".")[0] == "ray" for name in outside(path))]
    assert using in ([], [SOURCE / "runs" / "on_ray.py"])


def test_random_numbers_are_drawn_in_one_file() -> None:
    """No global generator anywhere, and no generator made outside rng.py."""
    banned = {
        "rand",
        "randn",
        "randint",
        "randperm",
        "randn_like",
        "rand_like",
        "manual_seed",
        "default_rng",
        "RandomState",
        "Philox",
        "normal_",
    }
    for module, path in MODULES.items():
        if module == "diffprobe.rng":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                assert not text.startswith(("np.random.", "numpy.random.", "random.")) or text in ALLOWED, f"{module}: {text}"
                assert not (node.attr in banned and text.startswith("torch.")), f"{module}: {text}"
                assert node.attr not in {"default_rng", "RandomState", "Philox"}, f"{module}: {text}"
        assert "random" not in outside(path), f"{module} imports random"


ALLOWED = {"np.random.Generator"}  # the type


def outside(path: Path) -> set[str]:
    """The names of all modules that a file imports."""
    tree = ast.parse(path.read_text())
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
