"""The operator of both DAGs: one `tactful` command, whose exit code becomes the task's state.

| exit code                                | state    | why |
|------------------------------------------|----------|-----|
| 0                                        | success  | |
| 1, 75, or killed by a signal or time-out | retried  | unexpected or transient: the same command may succeed later |
| 4, 5 of `promote`                        | skipped  | the gate did its work and promoted nothing |
| anything else                            | failed   | configuration, input or data: trying again changes nothing |

Read from the worker's environment when the task runs: `TACTFUL`, the command (default `tactful`; several words make a
prefix, as `/path/to/python -m pipelines.cli`), and `TACTFUL_HOME`, the folder to run it in (default the worker's own).
"""

import os
import shlex
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator, Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

MEANING = {
    1: "unexpected error",
    2: "the configuration or the input cannot be used",
    3: "the data broke a critical expectation",
    4: "refused by the gate",
    5: "inconclusive: the log cannot settle it",
    75: "transient: somebody else was faster",
}
RETRIED = frozenset({1, 75})
NOT_PROMOTED = frozenset({4, 5})


CONFIG = Param(
    os.environ.get("TACTFUL_CONFIG", "tactful.toml"),
    type="string",
    minLength=1,
    description="The TOML file; a relative path is taken from TACTFUL_HOME.",
)
"""The parameter `config` of every DAG."""


class TactfulOperator(BaseOperator):
    """Run `tactful STEP CONFIG [--set key=value ...]` and turn its exit code into the task's state.

    step: the command's name; config: path of the TOML file; overrides: dotted key -> TOML value; skipped_on: exit codes
    that end the task as skipped. Raises AirflowException where a retry may help, AirflowFailException where it cannot.
    """

    template_fields = ("config", "overrides")
    ui_color = "#e8f1ec"

    def __init__(
        self,
        *,
        step: str,
        config: str = "{{ params.config }}",
        overrides: Mapping[str, str] | None = None,
        skipped_on: Collection[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.step = step
        self.config = config
        self.overrides = dict(overrides or {})
        self.skipped_on = sorted(skipped_on)

    @cached_property
    def subprocess(self) -> SubprocessHook:
        """Starts the command in a process group of its own and passes its output to the task's log, line by line."""
        return SubprocessHook()

    def execute(self, context: Any) -> None:
        """Run the command to its end."""
        sets = (word for key, value in self.overrides.items() for word in ("--set", f"{key}={value}"))
        command = [*shlex.split(os.environ.get("TACTFUL", "tactful")), self.step, self.config, *sets]
        folder = os.environ.get("TACTFUL_HOME") or os.getcwd()
        try:
            code = self.subprocess.run_command(command, cwd=folder).exit_code
        except OSError as error:  # nothing was started: no such command, no such folder, no right to run it
            raise AirflowFailException(
                f"{shlex.join(command)} could not be started in {folder}: {error}. Name the command in the worker's "
                "environment with TACTFUL and the folder with TACTFUL_HOME."
            ) from error
        if code == 0:
            return
        meaning = f"killed by signal {-code}" if code < 0 else MEANING.get(code, "not a code of tactful")
        ending = f"`tactful {self.step}` ended with exit code {code} ({meaning}); the reasons are in the lines above"
        if code in self.skipped_on:
            raise AirflowSkipException(f"{ending}.")
        if code in RETRIED or code < 0:
            raise AirflowException(f"{ending}. Tried again as long as tries are left.")
        raise AirflowFailException(f"{ending}. Not tried again: the same command would end the same way.")

    def on_kill(self) -> None:
        """End the command and what it started (Spark) when the task is cleared, marked or out of time."""
        if self.subprocess.sub_process is not None and self.subprocess.sub_process.poll() is None:
            self.subprocess.send_sigterm()
