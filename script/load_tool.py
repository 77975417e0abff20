"""The load tool in script/bench-tools, built and run: what script/bench and script/grow-test share."""

import json
import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target"))


def build(*command, **options):
    print("+", " ".join(command), file=sys.stderr)
    subprocess.run(command, check=True, **options)


def load_tool():
    """Builds s3bench (release); returns its path."""
    target = TARGET / "bench"
    build("cargo", "build", "--release", "--locked", "--manifest-path", str(TOP / "script/bench-tools/Cargo.toml"),
          "--target-dir", str(target))
    return str(target / "release" / "s3bench")


def run_steps(tool, client_environment, steps):
    """Runs steps (None: the standard series) against the server that the environment names; returns a dictionary a step."""
    command = [tool] + (["--steps", steps] if steps else [])
    done = subprocess.run(command, env={**os.environ, **client_environment}, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        print(f"the load tool reported errors (status {done.returncode})", file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]
