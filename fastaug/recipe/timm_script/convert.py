"""From timm's arguments to a recipe: every step in its order, and what is left argument by argument."""

from fastaug.recipe.timm_script import augmentation, images, network, run, training
from fastaug.recipe.timm_script.arguments import Argument, all_arguments
from fastaug.recipe.timm_script.command_line import Given
from fastaug.recipe.timm_script.conversion import Conversion, default_of

STEPS = (
    images.root,
    images.keys_of_records,
    images.splits,
    images.input_of_network,
    network.network,
    network.weights,
    network.distillation,
    network.precision,
    network.average,
    training.batches,
    training.rate,
    training.schedule,
    training.optimizer,
    augmentation.crops,
    augmentation.repeats,
    augmentation.mixing,
    augmentation.loss,
    run.folder,
    run.logging,
)


def converted(source: Given) -> Conversion:
    """The recipe of what was given; RecipeError where timm's script would not train either."""
    made = Conversion(source)
    for step in STEPS:
        step(made)
    for name, argument in all_arguments().items():
        if name not in made.rows:
            _alone(made, argument)
    made.rows = {name: made.rows[name] for name in all_arguments()}
    return made


def _alone(c: Conversion, argument: Argument) -> None:
    """An argument that stands for itself, by its line in arguments.yaml."""
    name, value = argument.name, c[argument.name]
    if argument.key and value is not None:
        expected = default_of(argument.key)
        value = float(value) if isinstance(expected, float) and isinstance(value, int) else value
        c.sets(name, **{argument.key.replace(".", "__"): value})
    elif argument.lacks and value != argument.default:
        c.lacks(name)
    else:
        assert argument.key or argument.lacks or argument.idle, f"{name} is not converted"
        unset = value == argument.default
        c.idle(name, argument.idle or ("the default, which changes nothing" if unset else ""))
