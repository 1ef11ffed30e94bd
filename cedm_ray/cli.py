"""The door: `cedm-ray` and how it ends. Its verbs stand in `verbs/` and import torch and Ray only when they run."""

import contextlib
import os
import signal
import sys
import traceback
from types import FrameType

import click

from cedm_ray.allocator import keep_freed_memory
from cedm_ray.errors import CedmError, ConfigurationError, LockedError, StorageError
from cedm_ray.verbs.clustering import bound, cluster, features
from cedm_ray.verbs.control import status, stop, watch
from cedm_ray.verbs.evaluation import evaluate
from cedm_ray.verbs.images import images
from cedm_ray.verbs.models import train
from cedm_ray.verbs.planning import plan
from cedm_ray.verbs.sampling import figure, sample
from cedm_ray.verbs.search import report, search


class _Terminated(BaseException):
    """SIGTERM arrived. What was acknowledged is on disk already."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="cedm-ray")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """How many groups should a diffusion model of your unlabelled images be conditioned on, and how good does it get?

    SPACE is a search space (a YAML file), STUDY the folder that holds all of a search. Running any command again goes
    on where it stopped.
    """
    context.obj["debug"] = debug


_VERBS = (search, plan, images, features, bound, cluster, train, sample, figure, evaluate, report, status, watch, stop)
for _verb in _VERBS:
    cli.add_command(_verb)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def main() -> None:
    """Run a verb and end with the exit code that tells the truth; `exit.json` in the study repeats it."""
    signal.signal(signal.SIGTERM, _terminate)
    keep_freed_memory()
    context: dict = {}
    code, text = 0, "done"
    try:
        # click makes the context; this mapping outlives it, so that the end of the command can be written down.
        code = cli.main(standalone_mode=False, obj=context) or 0
        text = "done" if code == 0 else "finished, and some trials failed"
    except CedmError as error:
        code, text = error.exit_code, str(error)
        _explain(error, debug=context.get("debug", False))
    except click.ClickException as error:
        code, text = ConfigurationError.exit_code, error.format_message()
        error.show()
    except (KeyboardInterrupt, click.Abort):
        code, text = 128 + signal.SIGINT, "interrupted; everything acknowledged is saved"
    except _Terminated:
        code, text = 128 + signal.SIGTERM, "terminated; everything acknowledged is saved"
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has left; the work itself is done.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends.
    except Exception as error:
        if (signum := _signal_behind(error)) is not None:
            word = "terminated" if signum == signal.SIGTERM else "interrupted"
            code, text = 128 + signum, f"{word}; everything acknowledged is saved"
        else:
            code, text = 1, f"{type(error).__name__}: {error}"
            traceback.print_exc()
            print("This is a bug of ours; what was acknowledged is saved.", file=sys.stderr)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print(f"cedm-ray was {text}; the same command goes on", file=sys.stderr)
    study = context.get("study")
    if study is not None and study.exists and code != LockedError.exit_code:
        # Where the storage is full this cannot be written either, and the code must still be the one that was found.
        with contextlib.suppress(StorageError):
            study.write_exit(code, text)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of Ray and torch may still be about; nothing of ours depends on them, and a signal must end us at once.
    os._exit(code)


def _signal_behind(error: BaseException) -> int | None:
    """The signal that an error came of, if any: in the middle of a call into Ray, what its handler raises comes out as
    Python's own SystemError, of which it is the cause."""
    while isinstance(error, SystemError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, _Terminated):
        return signal.SIGTERM
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else None


def _explain(error: CedmError, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"error: {_inert(str(error))}", file=sys.stderr)
    if error.mend:
        print(f"  to mend it: {_inert(error.mend)}", file=sys.stderr)


def _inert(text: str) -> str:
    """Text whose control characters a terminal shows and does not obey: names in it may come from anywhere."""
    from cedm_ray.data.decoding import printable

    return "\n".join(map(printable, text.split("\n")))
