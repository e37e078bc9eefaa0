import torch

from distrib.batch import Batch, entries_by_chunk, item_chunks, level_index


def test_keep_drops_interactions_but_no_user():
    batch = Batch.from_lists([[1, 2], [], [3]], [[1.0, 2.0], [], [3.0]], [7, 8, 9])
    kept = batch.keep(torch.tensor([False, True, False]))
    assert kept.pointer_P.tolist() == [0, 1, 1, 1]
    assert kept.item_N.tolist() == [2]
    assert kept.user_B.tolist() == [7, 8, 9]
    assert batch.row_N.tolist() == [0, 0, 2]


def test_cells_come_block_by_block_and_know_their_place(small):
    batch = small.batch
    blocks = item_chunks(50, 17)
    assert blocks == [(0, 17), (17, 34), (34, 50)]
    seen = 0
    for (low, high), cells in zip(blocks, entries_by_chunk(batch, blocks), strict=True):
        assert ((cells.column_M >= 0) & (cells.column_M < high - low)).all()
        assert torch.equal(batch.item_N[cells.place_M], cells.column_M + low)
        assert torch.equal(batch.row_N[cells.place_M], cells.row_M)
        assert torch.equal(batch.value_N[cells.place_M], cells.value_M)
        seen += len(cells.row_M)
    assert seen == len(batch.item_N)


def test_values_go_to_the_nearest_level():
    assert level_index(torch.tensor([1.0, 2.4, 2.6, 9.0]), (1.0, 2.0, 3.0)).tolist() == [0, 1, 2, 2]
    assert level_index(torch.tensor([1.0, 5.0]), (1.0,)).tolist() == [0, 0]
