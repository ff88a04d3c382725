"""Monitors of models in training: a loop of one's own, accelerate, Lightning; TensorBoard and W&B; ranks."""

import pytest
import torch
from test_distributed import on_ranks
from torch import nn

from torch_fidelity_lsh.streaming import LSHPrecisionRecall
from torch_fidelity_lsh.training import TrainingMonitor, to_tensorboard
from torch_fidelity_lsh.training.monitor import seed_of_batch

FEATURES = 8


def real_batches(count=240, batch_size=60):
    rows = torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(7))
    return list(rows.split(batch_size))


def metric(**kwargs):
    return LSHPrecisionRecall(feature=None, reset_real_features=False, **kwargs)


def draw(n, random):
    return torch.randn(n, FEATURES, generator=random)


SETTINGS = {"samples": 230, "batch_size": 50}


def test_scores_are_those_of_the_metric_at_every_step():
    monitor = TrainingMonitor(metric(), real_batches(), draw, **SETTINGS)
    expected = metric()
    for number, n in enumerate((50, 50, 50, 50, 30)):
        expected.update(draw(n, torch.Generator().manual_seed(seed_of_batch(2020, number))), real=False)
    for batch in real_batches():
        expected.update(batch, real=True)
    scores = {f"fidelity/{name}": value.item() for name, value in expected.compute().items()}
    assert monitor(1) == monitor(2) == scores


def test_neighbouring_seeds_share_no_samples():
    drawn = []
    for seed in (2020, 2021):
        rows = []
        TrainingMonitor(metric(), real_batches(), lambda n, r: rows.append(draw(n, r)) or rows[-1], seed=seed)(0)  # noqa: B023
        drawn.append({tuple(row) for row in torch.cat(rows).tolist()})
    assert len(drawn[0]) == len(drawn[1]) == 1000
    assert not drawn[0] & drawn[1]


def test_samples_of_a_failed_call_do_not_count_in_the_next():
    def diverging(n, random):
        if n < SETTINGS["batch_size"]:  # the last batch
            raise RuntimeError("out of memory")
        return draw(n, random) + 20

    monitor = TrainingMonitor(metric(), real_batches(), diverging, **SETTINGS)
    with pytest.raises(RuntimeError, match="out of memory"):
        monitor(0)
    monitor.sample = draw
    assert monitor(1) == TrainingMonitor(metric(), real_batches(), draw, **SETTINGS)(1)


def test_scores_follow_the_model():
    model = nn.Linear(FEATURES, FEATURES)
    seen = []
    logs = [lambda scores, step: seen.append((step, scores))]
    monitor = TrainingMonitor(metric(), real_batches(), lambda n, random: model(draw(n, random)), logs, **SETTINGS)
    nn.init.eye_(model.weight), nn.init.zeros_(model.bias)
    good = monitor(10)
    nn.init.constant_(model.bias, 20.0)
    bad = monitor(20)
    assert good["fidelity/lsh_precision"] > 0.8 > 0.1 > bad["fidelity/lsh_precision"]
    assert seen == [(10, good), (20, bad)]
    assert model.weight.grad is None


def test_labels_beside_real_images_are_passed_over():
    pairs = [(batch, torch.zeros(len(batch))) for batch in real_batches()]
    one, other = (TrainingMonitor(metric(), real, draw, **SETTINGS) for real in (pairs, real_batches()))
    assert one(0) == other(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingMonitor(metric(), [], draw, samples=0), "samples must be an integer of at least 1; got 0"),
        (lambda: TrainingMonitor(metric(), [], draw, seed=-1), "seed must be an integer of at least 0; got -1"),
        (lambda: TrainingMonitor(LSHPrecisionRecall(None), [], draw), "reset_real_features=False"),
        (lambda: TrainingMonitor(metric(), [], draw)(0), "There are no real samples"),
        (lambda: TrainingMonitor(metric(), real_batches(), lambda n, random: draw(n - 1, random))(0), "of n images"),
        (lambda: TrainingMonitor(metric(), real_batches(), lambda n, random: [0] * n)(0), "got list for n=64"),
    ],
)
def test_what_cannot_be_scored_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def scores_of_rank(rank, world):
    """Score on ranks that have every second batch of the real ones each."""
    logged = []
    logs = [lambda scores, step: logged.append(step)]
    monitor = TrainingMonitor(metric(), real_batches()[rank::world], draw, logs, **SETTINGS)
    return [monitor(1), monitor(2), logged]


def test_two_ranks_score_what_one_does_and_the_first_logs(tmp_path):
    first, second = on_ranks(2, scores_of_rank, tmp_path, 2)
    alone = TrainingMonitor(metric(), real_batches(), draw, **SETTINGS)(0)
    assert first == [alone, alone, [1, 2]]
    assert second == [alone, alone, []]


def read_scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scores_arrive_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra training)")
    monitor = TrainingMonitor(metric(), real_batches(), draw, [to_tensorboard(tmp_path)], **SETTINGS)
    scores = [monitor(step) for step in (5, 10)]
    found = read_scalars(tmp_path, "fidelity/lsh_recall")
    assert [step for step, _ in found] == [5, 10]
    assert found[0][1] == pytest.approx(scores[0]["fidelity/lsh_recall"])


def test_scores_arrive_in_a_run_of_wandb_without_a_network(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, project="test") as run:
        monitor = TrainingMonitor(metric(), real_batches(), draw, [run.log], **SETTINGS)
        scores = [monitor(step) for step in (3, 4)]  # W&B writes a step when it sees the next one.
        found = dict(run.summary)
    assert (found["_step"], found["fidelity/lsh_recall"]) == (3, scores[0]["fidelity/lsh_recall"])


def test_scores_arrive_in_the_trackers_of_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra training)")
    accelerator = accelerate.Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("run")
    loader = accelerator.prepare(torch.utils.data.DataLoader(torch.cat(real_batches()), batch_size=32))
    scores = TrainingMonitor(metric(), loader, draw, [accelerator.log], **SETTINGS)(4)
    accelerator.end_training()
    assert read_scalars(tmp_path / "run", "fidelity/lsh_f_score") == [
        (4, pytest.approx(scores["fidelity/lsh_f_score"]))
    ]


class Share:
    """The real batches of a rank, known once there are ranks."""

    def __iter__(self):
        ranks = torch.distributed.is_initialized()
        start, step = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if ranks else (0, 1)
        return iter(real_batches()[start::step])


def fit(folder, every_n_epochs=1, lr=0.2, callbacks=(), **settings):
    """Let a module learn to shift its noise, scored by a callback; return trainer, module and steps of the scores."""
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed (extra training)")
    from torch_fidelity_lsh.training.lightning import LightningMonitor

    class Shift(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.drop, self.shift = nn.Dropout(0.5), nn.Parameter(torch.full((FEATURES,), 10.0))

        def training_step(self, batch, index):
            return (batch + self.shift).mean(0).square().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=lr)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.randn(64, FEATURES), batch_size=16)

    def sample(module, n, random):
        return module.drop(draw(n, random)) + module.shift

    steps = []
    monitor = LightningMonitor(metric(), Share(), sample, every_n_epochs, **SETTINGS)
    monitor._monitor.logs = (lambda scores, step: steps.append(step),)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    module = Shift()
    trainer = lightning.Trainer(
        accelerator="cpu", callbacks=[monitor, *callbacks], default_root_dir=folder, **quiet, **settings
    )
    trainer.fit(module)
    return trainer, module, steps


def test_lightning_logs_scores_that_checkpoints_can_be_chosen_by(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra training)")
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed (extra training)")
    logger = lightning.loggers.TensorBoardLogger(tmp_path, name="run", version="")
    best = lightning.callbacks.ModelCheckpoint(tmp_path / "best", monitor="fidelity/lsh_f_score", mode="max")
    trainer, module, _ = fit(tmp_path, callbacks=[best], max_epochs=2, logger=logger, log_every_n_steps=1)
    assert module.training
    found = read_scalars(tmp_path / "run", "fidelity/lsh_precision")
    assert len(found) == 2
    assert found[-1][1] > 0.7  # It has learned; and half of the values would be 0 in training mode.
    assert best.best_model_score == trainer.callback_metrics["fidelity/lsh_f_score"]


NO_FILES = {"logger": False, "enable_checkpointing": False}


def test_lightning_scores_every_other_epoch(tmp_path):
    _, _, steps = fit(tmp_path, every_n_epochs=2, max_epochs=5, **NO_FILES)
    assert steps == [8, 16]


def test_lightning_on_two_ranks_gives_the_score_of_one(tmp_path):
    found = []
    for ranks in ({"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}):
        trainer, _, _ = fit(tmp_path, lr=0.0, max_epochs=1, **NO_FILES, **ranks)
        found.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert found[0] == found[1]
    assert set(found[0]) == {"fidelity/lsh_precision", "fidelity/lsh_recall", "fidelity/lsh_f_score"}
