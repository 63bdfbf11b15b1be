"""timm's arguments of the run: its folder, what it logs and keeps."""

from fastaug.recipe.timm_script.conversion import Conversion


def folder(c: Conversion) -> None:
    output, name = c["output"], c["experiment"]
    if name:
        c.sets("experiment", run__dir=f"{(output or 'output/train').rstrip('/')}/{name}")
        c.idle("output", "in run.dir")
    elif output:
        c.sets("output", "timm makes a folder of the date in it", run__dir=f"{output.rstrip('/')}/{c['model']}")
        c.idle("experiment", "not given")
    else:
        c.idle("output", "runs/ and the recipe's name")
        c.idle("experiment", "not given")


def logging(c: Conversion) -> None:
    if c["log_wandb"]:
        c.sets("log_wandb", run__trackers=["wandb"])
    else:
        c.idle("log_wandb", "not given")
    if c["log_wandb"] and c["wandb_project"]:
        c.sets("wandb_project", run__project=c["wandb_project"])
    else:
        c.idle("wandb_project", "of --log-wandb")
    if c["recovery_interval"]:
        c.sets("recovery_interval", "updates of the whole run", run__checkpoint_every=c["recovery_interval"])
    else:
        c.idle("recovery_interval", "checkpoints at the end of every epoch")
    if c["eval_metric"] == "top1":
        c.idle("eval_metric", "of the select split, if there is one")
    c.idle("config", "its arguments count as given" if c["config"] else "not given")
    if c.source.processes == 1:
        c.idle("dist_bn", "one process")
    elif c["sync_bn"]:
        c.idle("dist_bn", "--sync-bn")
    else:
        c.lacks("dist_bn")
