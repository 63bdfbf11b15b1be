"""timm's arguments of the network: its own arguments, its weights, a teacher, precision, the moving average."""

from fastaug.errors import RecipeError
from fastaug.recipe.timm_script.conversion import Conversion
from fastaug.recipe.timm_script.images import asked_side, known_preprocessing

# Networks with dropout of their own; timm's script passes its 0 to every network.
DROPS_BY_ITSELF = {"ghostnet", "repghost", "rexnet", "senet"}


def network(c: Conversion) -> None:
    kwargs = dict(c["model_kwargs"])
    names = {"gp": "global_pool", "bn_momentum": "bn_momentum", "bn_eps": "bn_eps", "drop_block": "drop_block_rate"}
    for name, keyword in names.items():
        if c[name] is None:
            c.idle(name, "the network's own")
            continue
        kwargs[keyword] = c[name]
        c.told(name, "key", {"model.kwargs": {keyword: c[name]}}, "")
    if c["drop_path"] is None:
        c.idle("drop_path", "the network's own")
    elif c["drop_path"]:
        c.sets("drop_path", model__drop_path=c["drop_path"])
    else:
        kwargs["drop_path_rate"] = 0.0
        c.told("drop_path", "key", {"model.kwargs": {"drop_path_rate": 0.0}}, "")
    if (side := asked_side(c)) and "img_size" not in kwargs and _takes_one_size(c["model"]):
        kwargs["img_size"] = side  # as the script builds such networks
    if not c["drop"] and _drops_by_itself(c["model"]):
        kwargs["drop_rate"] = 0.0
        c.told("drop", "key", {"model.kwargs": {"drop_rate": 0.0}}, "timm's 0 overrules the network's own dropout")
    c.keys |= {"model.kwargs": kwargs} if kwargs else {}
    told = {"model.kwargs": dict(c["model_kwargs"])} if c["model_kwargs"] else {}
    c.told("model_kwargs", "key" if told else "idle", told, "" if told else "none")


def _drops_by_itself(name: str) -> bool:
    """Whether a network's own dropout rate is not 0."""
    from timm.models import is_model, model_entrypoint

    bare = name.split(".")[0]
    return is_model(bare) and model_entrypoint(bare).__module__.rpartition(".")[2] in DROPS_BY_ITSELF


def _takes_one_size(name: str) -> bool:
    """Whether a network is built for images of one size."""
    from timm.models import get_pretrained_cfg

    found = None if ":" in name else get_pretrained_cfg(name)
    return found is not None and bool(found.fixed_input_size)


def weights(c: Conversion) -> None:
    """Where weights come from; timm loads --initial-checkpoint over everything else."""
    own, path = c["initial_checkpoint"], c["pretrained_path"]
    if own:
        c.sets(
            "initial_checkpoint", "state_dict_ema before state_dict, as timm takes them", model__initial_checkpoint=own
        )
    else:
        c.idle("initial_checkpoint", "none")
    if path and c["pretrained"] and not own:
        c.lacks(
            "pretrained_path", "its head is taken where the classes fit, timm's is new", model__initial_checkpoint=path
        )
    else:
        unread = "timm reads it with --pretrained alone" if not own else "overwritten by --initial-checkpoint"
        c.idle("pretrained_path", unread if path else "none")
    if c["pretrained"] and (own or path):
        c.idle("pretrained", "overwritten by the weights of the file")
    else:
        c.sets("pretrained", model__pretrained=c["pretrained"])
    if c["num_classes"] is None:
        c.idle("num_classes", "the classes of data.root")
    else:
        c.idle("num_classes", f"counted in data.root, which should have {c['num_classes']}")


def distillation(c: Conversion) -> None:
    teacher, task, distill = c["kd_model_name"], c["task_loss_weight"], c["distill_loss_weight"]
    if teacher is None:
        for name in ("kd_model_name", "task_loss_weight", "distill_loss_weight", "kd_temperature"):
            c.idle(name, "no teacher")
        return
    known, _ = known_preprocessing(teacher, "--kd-model-name")
    c.sets("kd_model_name", distill__teacher=teacher, distill__pretrained=True)
    c.keys |= {f"distill.{key}": known[key] for key in ("mean", "std") if known[key] != c.keys.get(f"data.{key}")}
    c.sets("kd_temperature", distill__temperature=float(c["kd_temperature"]))
    if distill is None and task is not None:
        c.sets("task_loss_weight", distill__weight=1 - task)
        c.idle("distill_loss_weight", "1 - task_loss_weight")
        return
    task, distill = (1.0 if weight is None else weight for weight in (task, distill))
    if task + distill <= 0:
        raise RecipeError(["--task-loss-weight, --distill-loss-weight: nothing is left of the loss; raise one of them"])
    share = distill / (task + distill)
    c.lacks(
        "distill_loss_weight",
        f"the weights add up to 1 here: the loss is {task + distill:g} times smaller than timm's",
        distill__weight=share,
    )
    c.idle("task_loss_weight", "see distill_loss_weight")


def precision(c: Conversion) -> None:
    asked = [name for name in ("amp", "native_amp", "apex_amp") if c[name]]
    kind = {"float16": "fp16", "bfloat16": "bf16"}.get(c["amp_dtype"])
    if kind is None:
        raise RecipeError([f"--amp-dtype: {c['amp_dtype']!r} is not float16 or bfloat16"])
    for name in ("amp", "native_amp", "apex_amp"):
        if name in asked[:1]:
            c.sets(name, train__precision=kind)
        else:
            c.idle(name, "float32 throughout" if not asked else "said already")
    c.idle("amp_dtype", "the type of train.precision" if asked else "without --amp it says nothing")
    if c["model_dtype"] in (None, "float32"):
        c.idle("model_dtype", "float32")
    backend = c["torchcompile"]
    if backend == "inductor":
        c.sets("torchcompile", model__compile=True)
    elif backend:
        c.lacks("torchcompile", f"the backend is inductor, not {backend}", model__compile=True)
    else:
        c.idle("torchcompile", "not compiled")


def average(c: Conversion) -> None:
    if not c["model_ema"]:
        for name in ("model_ema", "model_ema_decay", "model_ema_warmup", "model_ema_force_cpu"):
            c.idle(name, "no moving average")
        return
    evaluated = {} if c["model_ema_force_cpu"] else {"eval__weights": "ema"}
    c.sets("model_ema", model__ema=True, **evaluated)
    c.sets("model_ema_decay", model__ema_decay=c["model_ema_decay"])
    c.sets("model_ema_warmup", model__ema_warmup=c["model_ema_warmup"])
