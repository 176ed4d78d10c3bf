"""Imports flow one way: from folders above, or from earlier files of one's own folder.
docs/architecture.md says why."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sjepa"

ORDER = ["inference", "core", "config", "dataset", "features", "gmm", "modules", "training", "evaluation", "reporting", "s_jepa", "tokenizer", "entrypoints"]  # fmt: skip
SYSTEMS = ("s_jepa", "tokenizer")  # none imports another
NEVER_CONFIG = ("dataset", "features", "gmm", "modules")
# of S-JEPA: what knows no configuration, and what knows no network
PLAIN = ("hubert", "model", "weights", "pretrained", "modules", "targets", "metrics", "export")
NETWORK = ("hubert", "model", "weights", "pretrained", "modules")
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


def part(module):
    """The file or folder below a system's roof."""
    return [*module.split("."), ""][2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_from_above(path):
    own = module_of(path)
    for other in imports(path, lazy=False):
        if other == "sjepa":  # the version
            continue
        assert ORDER.index(layer(other)) <= ORDER.index(layer(own)), f"{own} imports {other}, which is below it"
        if layer(own) in NEVER_CONFIG:
            assert layer(other) != "config", f"{own} knows the configuration"
    if layer(own) != "entrypoints":
        assert not list(imports(path, lazy=True)), f"{own} imports inside a function"


@pytest.mark.parametrize(
    "path", [path for path in FILES if layer(module_of(path)) in SYSTEMS], ids=lambda path: path.stem
)
def test_a_system_keeps_its_own_order_and_knows_no_other(path):
    own = module_of(path)
    for other in imports(path, lazy=False):
        assert layer(other) not in SYSTEMS or layer(other) == layer(own), f"{own} imports another system"
        if part(own) in PLAIN:
            assert layer(other) != "config", f"{own} knows the configuration"
            assert part(other) not in ("settings", "schema", "plan") or layer(other) != "s_jepa", (
                f"{own} knows the configuration"
            )
        if part(own) == "targets" and layer(other) == "s_jepa":
            assert part(other) not in NETWORK, f"{own} knows the network"


def test_the_loop_knows_no_system():
    """Nor do data, evaluation and reporting: what is theirs is said in no word of S-JEPA's own."""
    words = ("Divergence", "num_clusters", "MetricSums", "target_entropy", "predictor", "phase2", "phase 2", "mfcc",
             "init_weights", "gmm", "mixture", "EMA")  # fmt: skip
    for path in FILES:
        if layer(module_of(path)) in ("core", "training", "reporting"):
            text = path.read_text()
            found = [word for word in words if word in text]
            assert not found, f"{path} knows {found}"


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
        ("matplotlib", {"reporting/plots.py", "s_jepa/units/pictures.py", "tokenizer/codec/pictures.py"}),
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


def test_torch_files_are_read_and_written_in_two_places():
    """The mixture's own file is older than the other."""
    calls = ("torch.save(", "torch.load(")
    users = {str(path.relative_to(SOURCE)) for path in FILES if any(call in path.read_text() for call in calls)}
    assert users == {"gmm/diagonal.py", "core/torch_files.py"}
    for name in users:
        text = (SOURCE / name).read_text()
        assert text.count("torch.load(") == text.count("weights_only=True")


def test_the_geometry_has_one_home():
    """16 kHz, 400 and 320 samples; the geometry itself is an argument but where S-JEPA says which
    one is its own."""
    readers = {
        "core/frames.py",
        "s_jepa/settings.py",
        "s_jepa/modules/encoder.py",
        "s_jepa/hubert.py",
        "tokenizer/sizes.py",
        "tokenizer/codec/quality.py",
        "dataset/demo.py",
    }
    for path in FILES:
        name = str(path.relative_to(SOURCE))
        if name == "core/frames.py":
            continue
        numbers = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        wrong = {400, 320, 16000} & numbers - ({400, 320} if path.name == "demo.py" else set())  # formants, Hz
        assert not wrong, f"{path} writes the geometry's numbers"
        assert name in readers or "SPEECH" not in path.read_text(), f"{path} names a geometry"


def test_no_private_name_crosses_a_module():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sjepa"):
                assert not any(alias.name.startswith("_") and alias.name != "__version__" for alias in node.names), (
                    f"{path} imports a private name"
                )


def test_the_page_on_architecture_names_every_file():
    text = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    missing = [
        str(path.relative_to(SOURCE)) for path in FILES if f"`{path.name}`" not in text and f"/{path.name}`" not in text
    ]
    assert not missing
