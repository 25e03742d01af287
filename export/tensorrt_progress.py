"""A progress bar for TensorRT's builder, which can take seconds or the better part of an hour."""

from typing import Any

from tqdm import tqdm

from models.runtimes.cuda.tensorrt_library import TensorRT


def make_monitor(library: TensorRT) -> Any:
    """A progress monitor to give to the builder's configuration. It has to outlive the build; `close` removes its bar."""
    base: Any = library.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        """One bar for the outermost phase, with the name of the phase that began last; called from several threads."""

        def __init__(self) -> None:
            base.__init__(self)
            self.outermost = ""
            self.bar: tqdm[Any] | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase:
                if self.bar:
                    self.bar.set_postfix_str(phase_name, refresh=False)
                return
            self.close()
            self.outermost = phase_name
            self.bar = tqdm(total=num_steps, desc=phase_name, unit="step", leave=False)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self.bar and phase_name == self.outermost:
                self.bar.update(step + 1 - self.bar.n)
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self.outermost:
                self.close()

        def close(self) -> None:
            if self.bar:
                self.bar.close()
            self.bar = None

    return Monitor()
