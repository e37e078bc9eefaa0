"""Sizes of the last layer's blocks, where the run file leaves them open."""

import pytest
import torch

from distrib.models import Conv4RecConfig, MultVaeConfig
from distrib.training.engines.blocks import block_sizes, output_width, with_blocks
from distrib.training.engines.config import EngineConfig
from tests.conftest import Small

GB = 2**30


def test_a_gpu_with_room_decodes_all_items_at_once_and_keeps_them():
    items, keep_mb = block_sizes(120 * GB, rows=4096, items=20_108)
    assert items == 20_108
    assert keep_mb == 30 * 1024


@pytest.mark.parametrize("free_bytes", [-GB, 0, 2 * GB, 20 * GB])
def test_a_block_takes_a_quarter_of_what_is_free_but_no_less_than_on_a_cpu(free_bytes):
    items, keep_mb = block_sizes(free_bytes, rows=4096, items=1_000_000)
    least = EngineConfig()
    assert least.chunk_items <= items < 1_000_000
    assert keep_mb >= least.kept_mb
    assert items == least.chunk_items or 14 * 4096 * items <= free_bytes / 4


def test_decoders_of_all_classes_get_smaller_blocks(small):
    widths = {
        decoder: output_width(Conv4RecConfig(decoder=decoder).build(small.catalog))
        for decoder in ("ordinal", "linear", "mlp")
    }
    assert widths == {"ordinal": 1, "linear": 30, "mlp": 30}
    assert output_width(MultVaeConfig().build(small.catalog)) == 1
    narrow, wide = (block_sizes(100 * GB, 4096, 10**7, width)[0] for width in (1, 30))
    assert wide == pytest.approx(narrow / 30, rel=0.01)


def test_what_a_run_file_sets_stays(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100 * GB, 140 * GB))
    device = torch.device("cuda", 0)
    model = MultVaeConfig(hidden_width=100, latent_width=10).build(Small().catalog)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    auto = with_blocks(EngineConfig(), device, 500, 20_000, model)
    assert (auto.chunk_items, auto.kept_mb) == (
        20_000,
        block_sizes(100 * GB - 24 * parameters, 500, 1)[1],
    )
    set_apart = EngineConfig(block_items=77, keep_output_mb=9)
    fixed = with_blocks(set_apart, device, 500, 20_000, model)
    assert (fixed.chunk_items, fixed.kept_mb) == (77, 9)
    on_cpu = with_blocks(EngineConfig(), torch.device("cpu"), 500, 20_000, model)
    assert (on_cpu.chunk_items, on_cpu.kept_mb) == (4096, 256)
