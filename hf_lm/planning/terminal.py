"""A plan as a terminal shows it."""

from hf_lm.models.adapters import base_of
from hf_lm.planning.devices import GIB
from hf_lm.planning.plan import Plan
from hf_lm.reporting.report import in_hours
from hf_lm.reporting.terminal import bar
from hf_lm.training.estimate import checkpoints_activations


def show_plan(plan: Plan) -> str:
    """The plan as a table that is read in ten seconds."""
    run, work, parts = plan.run, plan.work, plan.parts
    accumulation = run.args.gradient_accumulation_steps
    where = "this machine" if plan.present else "by its data sheet"
    total = sum(part["parameters"] for part in parts.values())
    trained = sum(part["trainable"] for part in parts.values())
    kind = f"{plan.method}, {plan.precision}"
    kind += ", activation checkpointing" if checkpoints_activations(run.args) else ""
    kind += f", {plan.engine.said}" if plan.engine.said else ""
    lines = [f"{run.recipe}: {type(base_of(run.model)).__name__} on {plan.device.name} ({where}), {kind}", ""]
    share = f", {trained:,} trained ({trained / total:.1%})" if trained < total else ""
    lines.append(f"Parameters  {total:>15,}{share}")
    for part, count in parts.items():
        lines.append(f"  {part:<10}{count['parameters']:>15,}  {bar(count['parameters'] / max(1, total))}")
    free = " free" if plan.device.name == "cpu" else ""
    each = " on each device" if plan.engine.said else ""
    lines += ["", f"Memory      {_size(plan.needed):>15} of {_size(plan.device.memory)}{free}{each}"]
    lines += [f"  {name:<22}{_size(size):>9}  {bar(size / plan.needed)}" for name, size in plan.memory.items()]
    if plan.host:
        lines.append(f"  and {_size(plan.host)} of the host's memory for each process")
    if plan.fits:
        lines.append("  It fits.")
    else:
        lines.append("  It does NOT fit. Tried, the cheapest first:")
        lines += [f"    {'fits' if c.fits else 'no  '} {_size(c.needed):>9}  {c.name}" for c in plan.changes]
        if (last := plan.changes[-1]).fits and last.options:
            lines.append("    " + " ".join(f"--{key} {str(value).lower()}" for key, value in last.options.items()))
    batch = f"{run.args.per_device_train_batch_size} rows, up to {work.longest:,} tokens"
    batch += f", {accumulation} accumulated" if accumulation > 1 else ""
    tried = f", {work.trainings} times (--sweep {run.args.sweep})" if work.trainings > 1 else ""
    times = " + ".join(f"{in_hours(seconds)} {name}" for name, seconds in plan.times.items())
    lines += [
        "",
        f"Data        {work.tokens_per_epoch:>15,} tokens, {work.steps_per_epoch:,} steps an epoch (batch: {batch})",
        f"Training    {work.tokens:>15,} tokens, {work.steps:,} steps, "
        f"{work.steps / work.steps_per_epoch:.3g} epochs{tried}, {_flops(plan.flops)}",
        f"Time        {in_hours(plan.seconds):>15} = {times}",
    ]
    if plan.energy is not None:
        lines.append(f"Energy      {plan.energy:>11,.2f} kWh at {plan.engine.devices * plan.device.watts} W")
    if plan.price is not None:
        lines.append(f"Price       {plan.price:>15,.2f} at {run.args.price_per_hour:g} an hour")
    if plan.seconds > run.args.budget:
        lines.append(f"Budget      {in_hours(run.args.budget):>15}: the run will stop there with a checkpoint")
    assumed = "; ".join(plan.assumed)
    if plan.calibrated:
        measured = f"Measured in a few steps here: {plan.utilisation:.0%} of the device's matrix speed"
        lines += ["", f"{measured}; {assumed}" if assumed else measured]
    else:
        lines += ["", f"Assumed: {assumed}"]
    return "\n".join(lines)


def _size(size: float) -> str:
    if size >= 10 * GIB:
        return f"{size / GIB:,.1f} GiB"
    return f"{size / 2**20:,.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**10:,.0f} KiB"


def _flops(count: float) -> str:
    for power, name in ((18, "exa"), (15, "peta"), (12, "tera")):
        if count >= 10**power:
            return f"{count / 10**power:,.1f} {name}FLOP"
    return f"{count / 1e9:,.1f} gigaFLOP"
