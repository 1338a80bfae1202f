"""The runtimes that cpuinfer is compared with: how each is built, in an environment of its own, and run.

    python benchmarks/peer_builds.py FOLDER                     (all but ik_llama.cpp, whose sources it is given)
    python benchmarks/peer_builds.py FOLDER llama.cpp-native openvino
    python benchmarks/peer_builds.py FOLDER ik_llama.cpp --sources FOLDER_OF_ITS_SOURCES

It takes a C++ compiler, and for llama.cpp clang: GCC 12 builds an AMX path that crashes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import machine_limits
from runtimes import HERE, Runtime

LLAMA_CPP = "llama_cpp_python-0.3.36"
X86_64_V3 = ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")
AVX512 = ("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
TOOLS = ("scikit-build-core", "cmake", "ninja")
PYTHON = "bin/python"
Scope = Literal["levels", "models", "all"]
"""Measured on the models on which instruction sets are compared; on all models; on all and in all else."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A row of the comparison."""

    name: str
    folder: str
    """Of its environment, or of its build from sources that one gives."""
    script: str
    peak: str | None
    """As in `Runtime`."""
    requirements: tuple[str, ...] = ()
    cmake: tuple[str, ...] | None = None
    """Of llama.cpp's build."""
    options: tuple[str, ...] = ()
    """That the script is given before the model."""
    scope: Scope = "models"
    only: tuple[str, ...] = ()
    """Models that it reads; all that it can if none is named."""
    program: str = PYTHON
    """In the folder, once it is built: what runs the script, or of sources that one gives, what the script runs."""

    @property
    def from_sources(self) -> bool:
        """Whether it is no package."""
        return self.program != PYTHON

    @property
    def built(self) -> str:
        """For the report."""
        if self.cmake is not None:
            return f"{LLAMA_CPP} from its source package by clang, `CMAKE_ARGS='{' '.join(self.cmake)}'`"
        if self.requirements:
            return f"`pip install {' '.join(self.requirements)}`"
        return "GCC, `-DGGML_NATIVE=ON`" + (f", llama-bench with `{' '.join(self.options)}`" if self.options else "")


def _llama_cpp(level: str, peak: str | None, cmake: tuple[str, ...], scope: Scope = "levels") -> Peer:
    folder = f"llama.cpp-{level.lower()}"
    return Peer(f"llama.cpp {level}", folder, "measure_llama_cpp.py", peak, cmake=cmake, scope=scope)


def _ik_llama_cpp(name: str, options: tuple[str, ...] = (), scope: Scope = "models") -> Peer:
    script, program = "measure_ik_llama_cpp.py", "build/bin/llama-bench"
    return Peer(name, "ik_llama.cpp", script, "avx512_vnni", options=options, scope=scope, program=program)


def _portable(*features: str) -> tuple[str, ...]:
    """A build for what is named and nothing else; all that could be left over from a build before is set."""
    known = (*X86_64_V3, *AVX512)
    return ("-DLLAVA_BUILD=OFF", "-DGGML_NATIVE=OFF", *(f"-DGGML_{each}={_on(each in features)}" for each in known))


def _on(value: bool) -> str:
    return "ON" if value else "OFF"


PEERS = (
    _llama_cpp("native", None, ("-DLLAVA_BUILD=OFF", "-DGGML_NATIVE=ON"), "all"),
    _llama_cpp("VNNI", "avx512_vnni", _portable(*X86_64_V3, *AVX512)),
    _llama_cpp("AVX2", "avx2", _portable(*X86_64_V3)),
    Peer("OpenVINO", "openvino", "measure_openvino.py", "amx_bf16", ("openvino-genai==2026.4.1.0",), scope="all"),
    _ik_llama_cpp("ik_llama.cpp", scope="levels"),
    _ik_llama_cpp("ik_llama.cpp repacked", options=("-rtr", "1")),
    Peer(
        "Neural Speed",
        "neural-speed",
        "measure_neural_speed.py",
        "amx_int8",
        ("neural-speed==1.0", "torch==2.13.0", "numpy<2", "gguf"),
        only=("llama-7b:Q4_0",),  # it has a list of numbers of layers that a Llama may have
    ),
)


def python(folder: Path) -> str:
    """An environment's interpreter."""
    return str(folder / PYTHON)


def present(folder: Path) -> list[tuple[Peer, Runtime]]:
    """Those that are built there."""
    found = []
    for peer in PEERS:
        program, script = folder.resolve() / peer.folder / peer.program, str(HERE / peer.script)
        command = (sys.executable, script, str(program)) if peer.from_sources else (str(program), script)
        command += peer.options
        if program.exists():
            found.append((peer, Runtime(peer.name, command, peak=peer.peak, built=peer.built)))
    return found


def build(peer: Peer, folder: Path, sources: Path | None) -> None:
    """Its environment, made anew where it is there."""
    if peer.from_sources:
        build_ik(folder / peer.folder, sources)
        return
    own = folder / peer.folder
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(own)], check=True)
    if peer.cmake is None:
        pip(own, "install", *peer.requirements)
    else:
        pip(own, "install", "numpy", "typing-extensions", "diskcache", "jinja2")
        pip(own, "install", "--no-deps", str(llama_cpp_wheel(folder, peer)))


def llama_cpp_wheel(folder: Path, peer: Peer) -> Path:
    """Built in one folder for all, one after another, so that only what the options change is compiled again."""
    tools = folder / "tools"
    if not tools.exists():
        subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
        pip(tools, "install", *TOOLS)
    source = folder / LLAMA_CPP
    if not source.exists():
        package, _, version = LLAMA_CPP.partition("-")
        exact = (f"{package}=={version}", "--no-binary", package, "--no-deps", "--no-build-isolation")
        pip(tools, "download", "--dest", str(folder), *exact)
        with tarfile.open(f"{source}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    environment = {**os.environ, "CC": "clang", "CXX": "clang++", "CMAKE_ARGS": " ".join(peer.cmake or ())}
    environment |= {"CMAKE_GENERATOR": "Ninja", "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    if "-DGGML_NATIVE=ON" in (peer.cmake or ()) and "amx_int8" in machine_limits.processor()[1]:
        # By this name llama.cpp finds the tiles; clang 14 has another.  The report has what the build says of itself.
        environment["CCC_OVERRIDE_OPTIONS"] = "+-D__AMX_INT8__=1"
    wheels = folder / "wheels" / peer.folder
    options = ("--no-build-isolation", "--no-deps", f"--config-settings=build-dir={folder / 'build-llama.cpp'}")
    pip(tools, "wheel", "--wheel-dir", str(wheels), *options, str(source), environment=environment)
    return next(wheels.glob("*.whl"))


def build_ik(folder: Path, sources: Path | None) -> None:
    """Its llama-bench, from a folder of its sources, into another."""
    if sources is None:
        raise SystemExit("ik_llama.cpp: --sources is needed: it is not a package")
    target = folder / "build"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF"]
    subprocess.run(["cmake", "-S", str(sources), "-B", str(target), *options], check=True)
    command = ["cmake", "--build", str(target), "--target", "llama-bench", "-j", str(os.cpu_count())]
    subprocess.run(command, check=True)


def pip(environment_folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
    """Of an environment."""
    subprocess.run([python(environment_folder), "-m", "pip", *arguments], check=True, env=environment)


def main() -> None:
    """Build those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=", ".join(dict.fromkeys(each.folder for each in PEERS))
    )
    parser.add_argument("--sources", type=Path, help="of ik_llama.cpp")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    wanted = args.names or [peer.folder for peer in PEERS if not peer.from_sources]
    for peer in {peer.folder: peer for peer in PEERS if peer.folder in wanted}.values():
        build(peer, args.folder.resolve(), args.sources)


if __name__ == "__main__":
    main()
