"""Builds, demonstrates, tests and measures the packages of this repository; ``nox -l`` lists the sessions.

All sessions that need torch share one environment, ``build/env``, and one cache of built wheels, ``build/wheels``,
keyed by the content of the sources: running ``demo`` after ``tests`` builds and installs nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
ENVIRONMENT = BUILD / "env"
PYTHON = ENVIRONMENT / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"

# In the order of their dependencies.
PACKAGES = ("npu-core", "npu-ops-llm", "npu-ops-vision", "npu-distributed", "npu-profiler")
# What the other packages see of npu-core at build time.
SHARED_SOURCES = ("packages/npu-core/include", "packages/npu-core/cmake")
NOT_SOURCES = {"__pycache__", "build", "dist", "tests", ".pytest_cache", ".mypy_cache", ".ruff_cache"}

CPP_SUFFIXES = {".c", ".cpp", ".h", ".hpp", ".inc"}
LEAST_CMAKE = (3, 25)

# An extra package index that serves the CPU build of torch: what PyPI serves under the same version needs several GB of
# GPU libraries (it works too, only larger).
TORCH_INDEX = os.environ.get("TORCH_INDEX_URL")

TEST_REQUIREMENTS = ("pytest", "pytest-timeout", "expecttest", "hypothesis", "scipy", "safetensors")
# Another release than the pinned one, for the session abi.
SECOND_TORCH = "2.12.1"

DEMO_REQUIREMENTS = ("scikit-learn", "matplotlib", "tqdm", "numpy")

SANITIZERS = ("thread", "address")

# C++ tests of npu-core: the variable that names the program for pytest, its CMake project, the program.
TEST_PROGRAMS = (
    ("NPU_DRIVER_CONFORMANCE", "packages/npu-core/csrc/driver", "npu_driver_conformance"),
    ("NPU_RUNTIME_TESTS", "packages/npu-core/tests/runtime", "npu_runtime_tests"),
)
# C++ tests of npu-distributed, which its pytest modules build for themselves.
TRANSPORT_PROJECT = "packages/npu-distributed"
TRANSPORT_PROGRAMS = ("reduction_test", "collectives_test", "transfers_test", "hosts_test")


# ---- sessions -------------------------------------------------------------------------------------------------------


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Train a CNN on handwritten digits on npu; arguments after -- go to examples/digits_cnn.py."""
    install_packages(session)
    install(session, *DEMO_REQUIREMENTS)
    session.run(PYTHON, "examples/digits_cnn.py", *session.posargs, external=True)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run every test; arguments after -- go to pytest."""
    install_packages(session)
    install(session, *TEST_REQUIREMENTS, *DEMO_REQUIREMENTS)
    programs = build_test_programs(session)
    arguments = ["--timeout=600", *session.posargs]
    session.run(PYTHON, "-m", "pytest", *arguments, env={"OMP_NUM_THREADS": "2", **programs}, external=True)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Measure npu against stock PyTorch; arguments after -- go to python -m benchmarks."""
    install_packages(session)
    install(session, *DEMO_REQUIREMENTS)
    session.run(PYTHON, "-m", "benchmarks", *session.posargs, external=True)


@nox.session(venv_backend="none")
def opinfo(session: nox.Session) -> None:
    """Compare npu with the CPU over torch's whole operator database, all dtypes; arguments after -- narrow it down."""
    install_packages(session)
    install(session, *TEST_REQUIREMENTS)
    arguments = session.posargs or ["--dtype", "all", "--require", "95"]
    environment = {"OMP_NUM_THREADS": "2", "NPU_HOST_DEVICE_COUNT": "2"}
    script = "packages/npu-core/tests/opinfo/run_opinfo.py"
    session.run(PYTHON, script, *arguments, env=environment, external=True)


@nox.session(venv_backend="none")
def stress(session: nox.Session) -> None:
    """Run random programs on npu and check every value; arguments after --: --minutes 10 --seed 7."""
    install_packages(session)
    session.run(PYTHON, "packages/npu-core/tests/stress.py", *session.posargs, external=True)


@nox.session(venv_backend="none")
def soak(session: nox.Session) -> None:
    """Run random collectives over overlapping groups and check every result; after --: --calls 20000 --ranks 2."""
    install_packages(session)
    install(session, *TEST_REQUIREMENTS)
    session.run(PYTHON, "packages/npu-distributed/tests/soak.py", *session.posargs, external=True)


@nox.session
def abi(session: nox.Session) -> None:
    """Check the operator wheels under another torch; after --: its version.  PyPI's builds are several GB."""
    prepare_environment(session)
    version = session.posargs[0] if session.posargs else SECOND_TORCH
    index = ("--extra-index-url", TORCH_INDEX) if TORCH_INDEX else ()
    session.install(*index, f"torch=={version}", "numpy", *TEST_REQUIREMENTS)
    wheels = [str(built_wheel(session, package)) for package in ("npu-ops-llm", "npu-ops-vision")]
    session.install("--no-deps", "--force-reinstall", *wheels)
    # npu-core is made for one torch: CPU tensors only.
    tests = ("packages/npu-ops-llm/tests/test_every_operator.py", "packages/npu-ops-vision/tests/test_iou.py")
    session.run("python", "-m", "pytest", "--timeout=600", "-m", "abi", "-k", "not on_npu", *tests)


@nox.session(venv_backend="none")
def wheels(session: nox.Session) -> None:
    """Build the wheels into dist/ and check what they contain."""
    prepare_environment(session)
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    copies = [shutil.copy2(built_wheel(session, package), dist) for package in PACKAGES]
    session.run(PYTHON, "tools/inspect_wheels.py", *copies, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types; changes nothing."""
    session.install("-c", CONSTRAINTS, "ruff", "clang-format", "mypy")
    cpp = [path for path in tracked_files() if Path(path).suffix in CPP_SUFFIXES]
    listed = Path(session.create_tmp(), "cpp_files")
    listed.write_text("\n".join(cpp))
    typed = [*sorted(ROOT.glob("packages/*/src")), ROOT / "benchmarks"]
    checks = (
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("clang-format", "--dry-run", "-Werror", f"--files={listed}"),
        ("mypy", *(str(path.relative_to(ROOT)) for path in typed)),
    )
    failed = []
    for command in checks:
        session.log(f"{' '.join(command[:3])} ...")
        try:
            session.run(*command, log=False)
        except nox.command.CommandFailed:
            failed.append(command[0])
    if failed:
        session.error(f"not clean: {', '.join(failed)}")


@nox.session(venv_backend="none")
def sanitizers(session: nox.Session) -> None:
    """Run the C++ tests of driver, runtime and transport under ThreadSanitizer and AddressSanitizer."""
    prepare_environment(session)
    for sanitizer in SANITIZERS:
        for program in build_test_programs(session, sanitizer).values():
            run_sanitized(session, Path(program), *session.posargs)
        build = BUILD / "tests" / sanitizer / "transport"
        options = ("-DNPU_DISTRIBUTED_NATIVE_TESTS=ON", "-DNPU_DISTRIBUTED_BINDINGS=OFF")
        build_programs(session, TRANSPORT_PROJECT, build, TRANSPORT_PROGRAMS, sanitizer, *options)
        for name in TRANSPORT_PROGRAMS:
            run_sanitized(session, build / name)


# ---- the shared environment -----------------------------------------------------------------------------------------


def install(session: nox.Session, *requirements: str) -> None:
    """pip install into the shared environment, torch pinned."""
    session.run(PYTHON, "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, *requirements, external=True)


def prepare_environment(session: nox.Session) -> None:
    """Create the shared environment with torch and everything that builds a wheel."""
    require_compiler(session)
    if not PYTHON.exists():
        session.run(sys.executable, "-m", "virtualenv", "--quiet", "--clear", ENVIRONMENT, external=True)
    pinned = re.search(r"^torch==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    if pinned is None:
        session.error(f"{CONSTRAINTS} must pin torch")
    if (installed_torch() or "").split("+")[0] != pinned[1]:
        index = ("--extra-index-url", TORCH_INDEX) if TORCH_INDEX else ()
        install(session, *index, f"torch=={pinned[1]}")
    install(session, "numpy", "packaging", "pyyaml", "pybind11", "scikit-build-core", *missing_build_tools())


def install_packages(session: nox.Session) -> None:
    """Bring the shared environment to the state of the sources."""
    prepare_environment(session)
    for package in PACKAGES:
        wheel = built_wheel(session, package)
        marker = ENVIRONMENT / "npu-packages" / package
        if marker.exists() and marker.read_text() == wheel.parent.name:
            continue
        marker.unlink(missing_ok=True)
        pip = (PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall")
        session.run(*pip, wheel, external=True)
        marker.parent.mkdir(exist_ok=True)
        marker.write_text(wheel.parent.name)


def installed_torch() -> str | None:
    """The version of torch in the shared environment."""
    for record in ENVIRONMENT.glob("lib/python*/site-packages/torch-*.dist-info/METADATA"):
        return record.parent.name.removeprefix("torch-").removesuffix(".dist-info")
    return None


def built_wheel(session: nox.Session, package: str) -> Path:
    """The wheel of the package as its sources are now, built if there is none yet."""
    folder = BUILD / "wheels" / f"{package}-{fingerprint(package)}"
    found = sorted(folder.glob("*.whl"))
    if found:
        return found[0]
    unfinished = BUILD / "wheels" / f"{package}-unfinished"
    for old in BUILD.glob(f"wheels/{package}-*"):
        shutil.rmtree(old)
    session.log(f"building {package} with {parallel_jobs()} compile jobs")
    session.run(
        *(PYTHON, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation"),
        *("--config-settings", f"build-dir={BUILD / 'cmake' / package}", "--wheel-dir", unfinished),
        ROOT / "packages" / package,
        env=build_variables(),
        external=True,
    )
    unfinished.rename(folder)
    return next(folder.glob("*.whl"))


def fingerprint(package: str) -> str:
    """Hash of everything a wheel is made from: sources, pins, compiler, Python, flags."""
    digest = hashlib.sha256()
    for fact in (sys.version, installed_torch() or "", compiler_version(), CONSTRAINTS.read_text()):
        digest.update(f"{fact}\0".encode())
    for name in ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS", "CMAKE_BUILD_TYPE", "SKBUILD_CMAKE_ARGS"):
        digest.update(f"{name}={os.environ.get(name)}\0".encode())
    shared = () if package == "npu-core" else SHARED_SOURCES
    for folder in (f"packages/{package}", *shared):
        for path in source_files(ROOT / folder):
            digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode:o}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def source_files(folder: Path) -> Iterator[Path]:
    """Every file a build of `folder` may read, in a fixed order.  Tests are no part of a wheel."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the checkout is incomplete")
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in NOT_SOURCES and not name.endswith(".egg-info"))
        for name in sorted(files):
            yield Path(parent, name)


def build_variables() -> dict[str, str]:
    """Variables for a build: few jobs, because each takes up to 2 GB, and ccache where it is installed."""
    variables = {
        "CMAKE_BUILD_PARALLEL_LEVEL": str(parallel_jobs()),
        "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
        # Building must not depend on what an older npu-core does when torch is imported.
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }
    if shutil.which("ccache"):
        variables |= {"CMAKE_C_COMPILER_LAUNCHER": "ccache", "CMAKE_CXX_COMPILER_LAUNCHER": "ccache"}
        variables |= {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"}
    return variables


# ---- tools of the machine -------------------------------------------------------------------------------------------


def parallel_jobs() -> int:
    """Compile jobs at a time."""
    return int(os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", min(2, os.cpu_count() or 1)))


def require_compiler(session: nox.Session) -> None:
    """Fail early and clearly when nothing can be compiled."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        session.error("no C++ compiler found: install GCC 11 or later (Debian, Ubuntu: apt-get install g++)")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        session.error("Python.h not found: install Python's headers (Debian, Ubuntu: apt-get install python3-dev)")


def compiler_version() -> str:
    """First line of the compiler's own report."""
    compiler = os.environ.get("CXX", "c++")
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


def missing_build_tools() -> list[str]:
    """The build tools to take from PyPI because the machine has none, or too old a one."""
    missing = [] if shutil.which("ninja") else ["ninja"]
    cmake = shutil.which("cmake")
    if cmake:
        report = subprocess.run([cmake, "--version"], check=True, capture_output=True, text=True).stdout
        version = re.search(r"version (\d+)\.(\d+)", report)
    if not cmake or version is None or tuple(map(int, version.groups())) < LEAST_CMAKE:
        missing.append("cmake")
    return missing


def build_test_programs(session: nox.Session, sanitizer: str = "") -> dict[str, str]:
    """Build the C++ tests of npu-core; return the environment variables that lead pytest to them."""
    programs = {}
    for variable, source, program in TEST_PROGRAMS:
        build = BUILD / "tests" / (sanitizer or "plain") / program
        build_programs(session, source, build, (program,), sanitizer)
        programs[variable] = str(build / program)
    return programs


def build_programs(
    session: nox.Session, source: str, build: Path, programs: tuple[str, ...], sanitizer: str, *options: str
) -> None:
    """Build `programs` of the CMake project `source` in the folder `build`."""
    session.run(
        *("cmake", "-S", ROOT / source, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={PYTHON}"),
        *(f"-DNPU_SANITIZE={sanitizer}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", *options),
        env=build_variables(),
        external=True,
        log=False,
    )
    session.run(
        *("cmake", "--build", build, "--parallel", str(parallel_jobs()), "--target", *programs),
        env=build_variables(),
        external=True,
    )


def run_sanitized(session: nox.Session, program: Path, *arguments: str) -> None:
    """Run a program built with a sanitizer; any finding fails the session."""
    options = {
        "TSAN_OPTIONS": "halt_on_error=1 second_deadlock_stack=1",
        "ASAN_OPTIONS": "detect_leaks=1 strict_string_checks=1",
        "UBSAN_OPTIONS": "halt_on_error=1 print_stacktrace=1",
    }
    # ThreadSanitizer of older compilers cannot place its shadow memory when addresses are spread too widely.
    fixed_addresses = ["setarch", os.uname().machine, "-R"] if shutil.which("setarch") else []
    session.run(*fixed_addresses, program, *arguments, env=options, external=True)


def tracked_files() -> list[str]:
    """Files under version control and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()
    return [name for name in listed if Path(ROOT, name).is_file()]
