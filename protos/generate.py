"""Generates Python code and type stubs for every proto of the suite.

    python protos/generate.py              writes protos/gen
    python protos/generate.py --image FILE writes a descriptor set with source info, for buf

Needs the development requirements (grpcio-tools, mypy-protobuf, protovalidate). Takes about two
seconds, and leaves `gen` untouched when it fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from protovalidate import ViolationPb

PROTOS = Path(__file__).resolve().parent
OUTPUT = PROTOS / "gen"
VALIDATE_PROTO = "buf/validate/validate.proto"


def write_validate_descriptors(path: Path, include: Path) -> None:
    """Writes `buf/validate/validate.proto` and its imports as a descriptor set to `path`.

    The protovalidate package ships the compiled descriptor but not the .proto source, so the
    descriptor is taken from the file that declares its violation message.
    """
    validate = descriptor_pb2.FileDescriptorProto.FromString(
        ViolationPb.desc().file.proto.to_binary()
    )
    well_known = path.with_suffix(".imports")
    _protoc([f"-I{include}", "--include_imports", f"-o{well_known}", *validate.dependency])
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(well_known.read_bytes())
    descriptors.file.append(validate)
    path.write_bytes(descriptors.SerializeToString())


def generate(output: Path) -> None:
    """Replaces `output` by freshly generated modules, service stubs and `.pyi` files."""
    # The mypy plugins are console scripts beside the interpreter, which need not be on PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryDirectory(dir=PROTOS) as scratch:
        staged = Path(scratch) / "gen"
        staged.mkdir()
        _compile(
            Path(scratch),
            f"--python_out={staged}",
            f"--grpc_python_out={staged}",
            f"--mypy_out=relax_strict_optional_primitives:{staged}",
            f"--mypy_grpc_out={staged}",
            targets=[VALIDATE_PROTO, *_sources()],
        )
        for package in ("gaming", "buf"):
            (staged / package / "py.typed").touch()
        shutil.rmtree(output, ignore_errors=True)
        shutil.move(staged, output)


def write_image(path: Path) -> None:
    """Writes the suite's descriptor set, with imports and source info, to `path`."""
    with tempfile.TemporaryDirectory(dir=PROTOS) as scratch:
        _compile(
            Path(scratch),
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={path}",
            targets=_sources(),
        )


def _compile(scratch: Path, *options: str, targets: list[str]) -> None:
    include = Path(str(resources.files("grpc_tools"))) / "_proto"
    validate = scratch / "validate.binpb"
    write_validate_descriptors(validate, include)
    combined = scratch / "combined.binpb"
    _protoc(
        [
            f"-I{PROTOS}",
            f"-I{include}",
            f"--descriptor_set_in={validate}",
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={combined}",
            *_sources(),
        ]
    )
    _protoc([f"--descriptor_set_in={combined}", *options, *targets])


def _sources() -> list[str]:
    return sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "gaming").rglob("*.proto"))


def _protoc(arguments: list[str]) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        sys.exit("protoc failed; see the messages above")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--image", type=Path, help="write a descriptor set for buf here instead")
    arguments = parser.parse_args()
    if arguments.image:
        write_image(arguments.image)
    else:
        generate(OUTPUT)


if __name__ == "__main__":
    main()
