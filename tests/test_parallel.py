"""What Accelerate may be set to: anything under which a number would be wrong is refused before a folder is made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator, ParallelismConfig
from accelerate.state import GradientState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

import rlhf
from rlhf import optimize
from rlhf.algorithms.choices import methods
from rlhf.errors import InputError
from rlhf.parallel import require_accelerator, require_shardable
from rlhf.runs.launch import launch
from rlhf.runs.run import Run
from tests.batches import make_batch, ppo_loss
from tests.documented import ROOT
from tests.tabular import TabularPolicy
from tests.whole_loops import RunConfig

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ENVIRONMENTS = {
    "FSDP 1": {"ACCELERATE_USE_FSDP": "true"},
    "fsdp_cpu_ram_efficient_loading": FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
    "fsdp_offload_params": FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"},
    "fsdp_activation_checkpointing": FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
    "DeepSpeed": {"ACCELERATE_USE_DEEPSPEED": "True"},
    "Megatron-LM": {"ACCELERATE_USE_MEGATRON_LM": "1"},
    "a parallelism_config": {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
    "gradient_accumulation_steps is 4": {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
    "gradient_accumulation_steps is auto": {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"},
}


@pytest.fixture(autouse=True)
def gradient_state() -> Iterator[None]:
    yield
    GradientState._reset_state()


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set."""


def environment(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    for variable, value in ENVIRONMENTS[name].items():
        monkeypatch.setenv(variable, value)
    return name


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_train_refuses_what_a_launcher_asks_for_and_leaves_no_folder(name, tmp_path, monkeypatch) -> None:
    said = environment(monkeypatch, name)
    task = rlhf.Envs("CartPole-v1", num_envs=2, steps=4)
    with pytest.raises(InputError, match=said):
        rlhf.train(task.policy(), task, rlhf.PPO(), updates=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_recipe_refuses_it_in_one_line(name, monkeypatch, capsys) -> None:
    said = environment(monkeypatch, name)
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    with pytest.raises(SystemExit) as ended:
        launch(lambda config: pytest.fail("it was run"), Config)
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in message
    assert message.count("\n") == 1


def accelerate(**changes: object) -> SimpleNamespace:
    facts = {
        "distributed_type": DistributedType.NO,
        "is_fsdp2": False,
        "parallelism_config": None,
        "mixed_precision": "no",
        "gradient_accumulation_steps": 1,
    }
    return SimpleNamespace(**facts | changes)


def sharded(**changes: object) -> dict[str, object]:
    plugin = {"cpu_ram_efficient_loading": False, "cpu_offload": OffloadPolicy(), "activation_checkpointing": False}
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(**plugin | changes))
    return {"distributed_type": DistributedType.FSDP, "is_fsdp2": True, "state": state}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distributed_type": DistributedType.FSDP}, "set to FSDP 1,"),
        (sharded(cpu_ram_efficient_loading=True), "fsdp_cpu_ram_efficient_loading"),
        (sharded(cpu_offload=CPUOffloadPolicy()), "fsdp_offload_params"),
        (sharded(activation_checkpointing=True), "fsdp_activation_checkpointing"),
        ({"distributed_type": DistributedType.DEEPSPEED}, "DeepSpeed"),
        ({"distributed_type": DistributedType.MEGATRON_LM}, "Megatron-LM"),
        ({"distributed_type": DistributedType.XLA}, "XLA"),
        ({"distributed_type": DistributedType.MULTI_GPU, "parallelism_config": ParallelismConfig()}, "parallelism"),
        ({"mixed_precision": "fp16"}, "mixed precision is fp16"),
        ({"mixed_precision": "fp8"}, "mixed precision is fp8"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2"),
    ],
)
def test_an_accelerator_is_refused_by_name(changes, said) -> None:
    with pytest.raises(InputError, match=said):
        require_accelerator(accelerate(**changes))


@pytest.mark.parametrize("kind", [kind for kind in DistributedType if kind.value.startswith(("NO", "MULTI"))])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_plain_data_parallelism_is_taken(kind, precision) -> None:
    require_accelerator(accelerate(distributed_type=kind, mixed_precision=precision))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_fsdp2_is_taken_for_policies_and_methods_that_can_be_spread(precision) -> None:
    accelerator = accelerate(**sharded(), mixed_precision=precision)
    require_accelerator(accelerator)
    require_shardable(accelerator, "ppo", layers=True, shardable=True)
    with pytest.raises(InputError, match="names no layers"):
        require_shardable(accelerator, "ppo", layers=False, shardable=True)
    with pytest.raises(InputError, match="trpo goes over all weights at once"):
        require_shardable(accelerator, "trpo", layers=True, shardable=False)
    assert [name for name, kind in methods().items() if not kind.shardable] == ["reward_model", "trpo"]
    # What is not spread need not be.
    require_shardable(accelerate(), "trpo", layers=False, shardable=False)


def test_the_config_of_fsdp_asks_for_nothing_that_is_refused() -> None:
    path = ROOT / "recipes" / "accelerate" / "fsdp.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (config["distributed_type"], config["fsdp_config"]["fsdp_version"]) == ("FSDP", 2)
    # Accelerate's own default is true.
    assert config["fsdp_config"]["fsdp_cpu_ram_efficient_loading"] is False


def test_a_run_makes_no_folder_under_gradient_accumulation(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    with pytest.raises(InputError, match="gradient_accumulation_steps is 4"):
        Run(tmp_path / "run", RunConfig(name="x"), resume=False, accelerator=accelerator)
    assert not (tmp_path / "run").exists()


def test_the_gradient_is_divided_by_nothing_of_accelerates() -> None:
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)
    gradients = []
    for steps in (1, 4):
        policy.zero_grad()
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
        assert accelerator.gradient_accumulation_steps == steps
        filler = optimize.filler_of(batch)
        optimize.gradient(policy, batch, filler, ppo_loss(), accelerator=accelerator, micro_batch_cost=7)
        gradients.append([parameter.grad.clone() for parameter in policy.parameters()])
    assert all(map(torch.equal, *gradients))
