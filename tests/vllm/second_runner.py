"""Import before vLLM: its second model runner, a GPU's, on a CPU by Triton's interpreter."""

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import triton.backends as backends


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return False


class _Backend:
    driver, compiler = _Driver, None


backends.backends.setdefault("cpu", _Backend)
if os.environ.get("ASYNC_SCHEDULING"):  # as on a GPU
    from vllm.platforms.cpu import CpuPlatform

    _plain = CpuPlatform.check_and_update_config.__func__

    def _checked(cls: type, config: object) -> None:
        _plain(cls, config)
        config.scheduler_config.async_scheduling = True  # type: ignore[attr-defined]

    CpuPlatform.check_and_update_config = classmethod(_checked)
