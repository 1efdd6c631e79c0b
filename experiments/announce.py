"""What is known of a calibrated run before it starts, in one line."""

from __future__ import annotations

from experiments.caching import method_of
from experiments.calibration.config import CalibratedConfig
from experiments.calibration.files import calibrated_by, curve_path
from experiments.calibration.plans import load_plan, path_of
from experiments.config import Settings
from hicache.policy.scheduled import KindSchedule

__all__ = ["announcement"]


def announcement(settings: Settings) -> str | None:
    """Full steps, what is predicted, and the artefact; None for runs without a calibration."""
    if isinstance(settings.method, CalibratedConfig):
        plan = load_plan(settings)
        parts = [f"plan: {len(plan.full_steps)} of {plan.num_steps} steps in full {list(plan.full_steps)}"]
        if plan.closed_loop_psnr is not None:
            parts.append(f"PSNR {plan.closed_loop_psnr:.1f} dB on held-out calibration items")
        parts.append(f"open-loop error {plan.predicted_error:.3g} of reuse at the same steps")
        if plan.closed_loop_psnr is None and plan.scope == "output":
            parts.append("no closed-loop PSNR stored")
        return f"{', '.join(parts)} ({path_of(settings).name})"
    if settings.chosen:
        facts = settings.chosen
        full = method_of(settings).policy.plan(settings.num_steps) or []
        chosen = " ".join(f"{key}={facts[key]:g}" for key in ("sigma", "order") if key in facts)
        return (
            f"plan: {len(full)} of {settings.num_steps} steps in full, auto: {chosen}, "
            f"predicted error {facts['predicted_error']:.3g} of reuse at the same steps ({facts['artefact']})"
        )
    name = calibrated_by(settings)
    if name is None:
        return None
    policy, computed = method_of(settings).policy, ""
    if isinstance(policy, KindSchedule):
        counts = ", ".join(f"{kind} {len(steps)}" for kind, steps in policy.table.items())
        computed = f"computed of {settings.num_steps} steps: {counts}, "
    return f"plan: {computed}curves of {curve_path(settings, name).name}"
