"""Imports flow one way: from folders above, or from earlier files of one's own folder. docs/architecture.md says why."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sjepa"

ORDER = ["inference", "core", "config", "dataset", "features", "gmm", "modules", "hubert", "model", "weights", "pretrained", "targets", "objective", "metrics",
         "training", "evaluation", "export", "reporting", "entrypoints"]  # fmt: skip
NEVER_CONFIG = {
    "dataset",
    "features",
    "gmm",
    "modules",
    "hubert",
    "model",
    "weights",
    "pretrained",
    "targets",
    "objective",
    "metrics",
    "export",
}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py")


def layer(module):
    return module.split(".")[1]


def module_of(path):
    return ".".join(("sjepa", *path.relative_to(SOURCE).with_suffix("").parts))


def imports(path, *, lazy):
    """Modules of ours that a file imports: at its top, or (lazy) inside functions."""
    tree = ast.parse(path.read_text())
    top = set(ast.walk(ast.Module([n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.ClassDef)], [])))
    for node in ast.walk(tree):
        if (node in top) == lazy:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sjepa":
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sjepa."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_from_above(path):
    own = module_of(path)
    for other in imports(path, lazy=False):
        if other == "sjepa":  # the version
            continue
        assert ORDER.index(layer(other)) <= ORDER.index(layer(own)), f"{own} imports {other}, which is below it"
        if layer(own) in NEVER_CONFIG:
            assert layer(other) != "config", f"{own} knows the configuration"
        if layer(own) == "targets":
            assert layer(other) not in ("modules", "hubert", "model", "weights", "pretrained"), (
                f"{own} knows the network"
            )
    if layer(own) != "entrypoints":
        assert not list(imports(path, lazy=True)), f"{own} imports inside a function"


def test_no_cycles_inside_a_folder():
    graph = {module_of(path): set(imports(path, lazy=False)) for path in FILES}
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, f"cycle: {' → '.join([*open_, module])}"
        if module in done or module not in graph:
            return
        open_.append(module)
        for other in graph[module]:
            visit(other)
        done.add(open_.pop())

    for module in graph:
        visit(module)


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("lightning_fabric", {"core/distributed.py"}),
        ("loguru", {"reporting/console.py"}),
        ("tqdm", {"reporting/console.py"}),
        ("matplotlib", {"reporting/plots.py", "reporting/figures.py"}),
    ],
)
def test_libraries_have_one_home(library, allowed):
    users = {
        str(path.relative_to(SOURCE))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == library)
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == library for alias in node.names))
    }
    assert users == allowed


def test_torch_files_are_read_and_written_in_three_places():
    users = {
        str(p.relative_to(SOURCE))
        for p in FILES
        if any(call in p.read_text() for call in ("torch.save(", "torch.load("))
    }
    assert users == {"gmm/diagonal.py", "weights.py", "training/checkpoint.py"}
    for name in users:
        assert (SOURCE / name).read_text().count("torch.load(") == (SOURCE / name).read_text().count(
            "weights_only=True"
        )


def test_the_geometry_has_one_home():
    for path in FILES:
        numbers = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        allowed = path.name in ("frames.py", "demo.py")  # the demo's control rate has nothing to do with frames
        assert allowed or not {400, 320} & numbers, f"{path} writes the geometry's numbers"


def test_no_private_name_crosses_a_module():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sjepa"):
                assert not any(alias.name.startswith("_") and alias.name != "__version__" for alias in node.names), (
                    f"{path} imports a private name"
                )
