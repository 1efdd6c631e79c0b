"""A GPU that fails while a plan is worked on."""

import pytest
from plans import planned, states

from experiments.plans import worker
from experiments.plans.status import State
from experiments.plans.tasks import tasks_of
from experiments.plans.worker import DeviceLost, Worker
from experiments.runs import runner


@pytest.mark.parametrize("lost", [False, True])
def test_a_lost_gpu_fails_the_row_at_work_and_no_other(lost, small, monkeypatch):
    """What fails by itself, such as a lack of memory, leaves the GPU to the next row."""

    def synchronize(device):
        assert device == "cuda:0"
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might")

    plan = planned(small, "method=none", "seed=0,1,2")
    monkeypatch.setattr(runner, "check", lambda run: None)
    monkeypatch.setattr(runner, "execute", lambda run: (_ for _ in ()).throw(RuntimeError("CUDA error")))
    monkeypatch.setattr(worker.torch.cuda, "synchronize", synchronize)
    at_work = Worker(plan, "cuda:0", None, wait=False)
    if lost:
        with pytest.raises(
            DeviceLost, match="cuda:0 is lost to this process .*illegal memory access was encountered.; "
        ):
            at_work.run(tasks_of(plan, 1))
    else:
        at_work.run(tasks_of(plan, 1))
    assert states(plan) == [State.FAILED] + [State.WAITING if lost else State.FAILED] * 2
