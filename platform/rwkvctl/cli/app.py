"""The command `rwkvctl`: its groups, and what becomes of an error."""

from __future__ import annotations

import os
import shlex
import sys

import typer

from rwkvctl.base.errors import JobFailedError, UserError, explain
from rwkvctl.base.exit_codes import FAILED, INTERRUPTED
from rwkvctl.base.lineage import COMMAND_VARIABLE
from rwkvctl.base.processes import isolate_children
from rwkvctl.base.uris import mask
from rwkvctl.cli import chaos, checkpoint, config, data, demo, doctor, jobs, model, recipe, run, runs, serve, study

app = typer.Typer(
    name="rwkvctl",
    help="Train, tune, compare and ship RWKV-UNet segmentation models, from a laptop to a GPU cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data", help="Raw downloads into verified shards.")
app.command()(jobs.pretrain)
app.command()(jobs.finetune)
app.command()(jobs.tune)
app.command()(jobs.evaluate)
app.command()(jobs.predict)
app.command()(serve.serve)
app.add_typer(model.app, name="model", help="Models: list, show, promote, export, compare, look at.")
app.add_typer(checkpoint.app, name="checkpoint", help="What a run can go on from: list, verify, gc.")
app.command(name="runs")(run.list_runs)
app.add_typer(run.app, name="run", help="Runs, here and on clusters: list, follow, stop, resume.")
app.command()(runs.sync)
app.command()(runs.ui)
app.add_typer(recipe.app, name="recipe", help="Recipes: list, show, and the schema of your own.")
app.add_typer(study.app, name="study", help="The paper's tables: list, show, report.")
app.add_typer(config.app, name="config", help="Settings of this machine.")
app.command()(doctor.doctor)
app.command()(chaos.chaos)
app.command()(demo.demo)


def remember_command() -> None:
    """Let the jobs that this process starts know the command line, without secrets."""
    os.environ[COMMAND_VARIABLE] = shlex.join(["rwkvctl", *(mask(word) for word in sys.argv[1:])])


def main() -> None:
    """Run the command line; `rwkvctl.base.exit_codes` says what it ends with."""
    isolate_children()
    remember_command()
    try:
        app()
    except UserError as error:
        print(f"error: {mask(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except JobFailedError as error:
        print(f"failed: {mask(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno is None:  # a library's own, which its traceback explains better
            raise
        print(f"failed: {mask(explain(error))}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
