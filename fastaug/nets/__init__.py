"""Networks: models, optimizers and schedules, timm's by name. Knows no meta step."""
