# SPDX-License-Identifier: MIT
"""The sampler's rows, step by step and without a server around them."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from ascedfast import AscedConfig
from ascedfast.adapters.pipeline_folder import FolderError, load_pipeline
from ascedfast.demo import load_model as load_packaged
from ascedfast.server.encode import image_of
from ascedfast.server.model import RowModel, load_model, row_model
from ascedfast.server.sampler import Order, Sampler
from ascedfast.server.settings import ServerSettings
from ascedfast.server.stepper import Stepper
from benchmarks.serving.stub import PLACES, SHAPE, alone, decode, denoise, load


class Ticket:
    """Keeps what it is told."""

    def __init__(self):
        self.steps, self.images, self.error = [], None, None

    def progressed(self, step):
        self.steps.append(step)

    def finished(self, images):
        self.images = images

    def failed(self, error):
        self.error = error


def order_of(seed=0, n=1, steps=6, config=None, exact=False):
    return Order(seed, n, steps, config, exact, Ticket())


def run(sampler):
    while sampler.step():
        pass


def sha256_of(order):
    return [image_of(image, order.seed, draw, "none").sha256 for draw, image in enumerate(order.listener.images)]


def wanted(seed, n=1, steps=6, **asced):
    return [one["sha256"] for one in alone({"seed": seed, "n": n, "steps": steps, "asced": asced})]


def test_orders_of_other_lengths_begin_and_end_between_the_steps_of_others():
    told = []
    sampler = Sampler(load(None), 4, lambda seconds, rows: told.append(rows))
    first = order_of(1, n=2, steps=6, config=AscedConfig.fast(**PLACES))
    second, third = order_of(2, steps=3), order_of(3, n=2, steps=8, config=AscedConfig.paper(t_c=6, window_start=0))
    sampler.order(first)
    sampler.step()
    sampler.order(second)
    sampler.order(third)  # there is no room for two before the second has left
    assert sampler.waiting == 3
    run(sampler)
    assert told == [2, 3, 3, 3, 4, 4, 2, 2, 2, 2, 2, 2]
    assert first.listener.steps == [1, 2, 3, 4, 5, 6]
    assert sha256_of(first) == wanted(1, n=2, **PLACES)
    assert sha256_of(second) == wanted(2, steps=3, enabled=False)
    assert sha256_of(third) == wanted(3, n=2, steps=8, mode="paper", t_c=6, window_start=0)
    assert (sampler.running, sampler.waiting) == (0, 0)


def test_one_that_is_cancelled_is_gone_before_the_next_step():
    told = []
    sampler = Sampler(load(None), 1, lambda seconds, rows: told.append(rows))
    leaving, waiting, staying = order_of(1, steps=100), order_of(2), order_of(3)
    for one in (leaving, waiting, staying):
        sampler.order(one)
    sampler.step()
    sampler.cancel(leaving)
    sampler.cancel(waiting)
    run(sampler)
    assert leaving.listener.steps == [1]
    assert (leaving.listener.images, waiting.listener.images) == (None, None)
    assert sha256_of(staying) == wanted(3, enabled=False)
    assert len(told) == 7


def test_a_step_that_fails_fails_its_orders_alone():
    model = load(None)
    network, model.network = model.network, lambda x, t: (_ for _ in ()).throw(RuntimeError("out of memory"))
    sampler = Sampler(model, 4)
    lost, next_one = order_of(1), order_of(2)
    sampler.order(lost)
    assert sampler.step()
    assert isinstance(lost.listener.error, RuntimeError)
    model.network = network
    sampler.order(next_one)
    run(sampler)
    assert sha256_of(next_one) == wanted(2, enabled=False)


def test_settings_that_do_not_fit_the_run_are_refused_and_the_others_go_on():
    sampler = Sampler(load(None), 4)
    wrong, right = order_of(1, steps=3, config=AscedConfig(t_c=3)), order_of(2)
    sampler.order(wrong)
    sampler.order(right)
    run(sampler)
    assert "past the end of a run of 3 steps" in str(wrong.listener.error)
    assert sha256_of(right) == wanted(2, enabled=False)
    with pytest.raises(ValueError, match="ask for fewer"):
        sampler.order(order_of(n=5))


@pytest.mark.parametrize("part", ["course", "noise"])
def test_an_order_that_cannot_begin_fails_alone(part, monkeypatch):
    model = load(None)
    sampler = Sampler(model, 4)
    neighbour, broken = order_of(1, config=AscedConfig.fast(**PLACES)), order_of(2, n=2, config=AscedConfig())
    sampler.order(neighbour)
    sampler.step()

    def fail(*args):
        raise IndexError("list index out of range")

    with monkeypatch.context() as patch:
        patch.setattr(model, part, fail)
        sampler.order(broken)
        sampler.step()
    assert isinstance(broken.listener.error, RuntimeError)
    assert "IndexError" in str(broken.listener.error)
    run(sampler)
    assert sha256_of(neighbour) == wanted(1, mode="fast", **PLACES)
    assert sampler.running == 0
    again = order_of(3, n=4, config=AscedConfig())  # all rows are free
    sampler.order(again)
    run(sampler)
    assert again.listener.images


def test_where_the_thread_ends_nobody_waits(monkeypatch):
    sampler = Sampler(load(None), 4)
    monkeypatch.setattr(sampler, "_hand_out", lambda: 1 / 0)
    stepper = Stepper(sampler)
    first, second = order_of(1, steps=3), order_of(2)
    stepper.order(first)
    stepper._thread.join(30)
    assert not stepper.is_alive
    stepper.order(second)
    assert all("has ended" in str(order.listener.error) for order in (first, second))


def test_nan_in_one_row_touches_no_other():
    model = load(None)

    def network(x, t):
        m = denoise(x, t)
        return m.where((torch.arange(len(x)) > 0)[:, None, None, None], torch.nan)

    model.network = network
    sampler = Sampler(model, 2)
    broken, sound = (order_of(seed, config=AscedConfig.fast(**PLACES)) for seed in (1, 2))
    sampler.order(broken)
    sampler.order(sound)
    run(sampler)
    assert broken.listener.images[0].report.status == "not finite"
    assert sha256_of(sound) == wanted(2, **PLACES)


def test_exact_rows_are_evaluated_one_by_one_and_the_others_together():
    rows = []
    model = load(None)
    network, model.network = model.network, lambda x, t: rows.append(len(x)) or network(x, t)
    sampler = Sampler(model, 8)
    sampler.order(order_of(1, n=3, steps=1))
    sampler.order(order_of(2, n=2, steps=1, exact=True))
    run(sampler)
    assert sorted(rows) == [1, 1, 3]


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_off_and_alone_it_is_the_stock_pipeline(name):
    steps, folder = 2, {"unet": "emoji64-unet", "dit": "emoji64-dit"}[name]
    from importlib import resources

    with resources.as_file(resources.files("ascedfast") / "assets" / folder) as path:
        pipe = load_pipeline(path)
    stock = pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(5)).images[0]
    order = order_of(5, steps=steps, exact=True)
    sampler = Sampler(row_model(pipe, path), 2)
    sampler.order(order)
    sampler.order(order_of(6, steps=steps))
    run(sampler)
    image = image_of(order.listener.images[0], 5, 0, "none")
    np.testing.assert_array_equal(decode(image.b64_json), np.asarray(stock))


def test_images_of_a_request_are_those_of_one_generator():
    states = load(None).noise(3, 3)
    generator = torch.Generator().manual_seed(3)
    for state in states:
        torch.testing.assert_close(state, torch.randn(1, *SHAPE, generator=generator)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scheduler", "why"),
    [
        (EulerDiscreteScheduler(), "EulerDiscreteScheduler is not served"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling is not served"),
        (DDIMScheduler(thresholding=True), "thresholding is not served"),
    ],
)
def test_solvers_that_need_more_than_their_row_are_refused(scheduler, why):
    with pytest.raises(FolderError, match=why):
        RowModel(denoise, scheduler, SHAPE)


def test_a_folder_that_cannot_be_served_is_refused(tmp_path):
    from importlib import resources

    source = resources.files("ascedfast") / "assets" / "emoji64-unet"
    folder = tmp_path / "unet"
    shutil.copytree(source, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "DDPMPipeline"}))
    with pytest.raises(FolderError, match="DDPMPipeline is not served"):
        load_model(ServerSettings(pipeline=folder))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(FolderError, match="pickled weights"):
        load_model(ServerSettings(pipeline=folder))


def test_the_packaged_model_is_served_by_default():
    model = load_model(ServerSettings())
    denoiser, _ = load_packaged("dit")
    assert model.shape == (3, denoiser.config.sample_size, denoiser.config.sample_size)
