"""Keys: the identity of real families, k-means, the split of ranks, the bound, one step of training."""

import math
from itertools import pairwise

import pytest
import torch
import transformers

from models.language._keys import (
    BrokenIdentity,
    check_identity,
    gain,
    key_clusters,
    leak,
    lift,
    push,
    spurious,
)
from models.language._reader import Reader

ROWS = [[5, 9, 2, 7], [3, 1]]
SIZES = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = SIZES | {"intermediate_size": 24, "max_position_embeddings": 64, "num_key_value_heads": 2, "pad_token_id": 0}


def made(kind: str, **settings):
    torch.manual_seed(3)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=41, n_positions=64, n_embd=16, n_layer=2, n_head=2, **settings)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = getattr(transformers, f"{kind}Config")(**LLAMA | settings)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for p in model.parameters():  # norms of ones would hide a state that is taken before them
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


# ---------------------------------------------------------------- W h = logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "Llama"])
def test_keys_times_query_are_the_logits(kind, tied):
    model = made(kind, tie_word_embeddings=tied)
    found = check_identity(Reader(model), ROWS)
    assert found.difference < 1e-4 and found.kind == "W h"
    reading = Reader(model).read(ROWS)
    torch.testing.assert_close(reading.query @ model.lm_head.weight.T, reading.logits, rtol=1e-4, atol=1e-4)


def test_a_bias_counts_and_is_named():
    model = made("gpt2", tie_word_embeddings=False)
    model.lm_head.bias = torch.nn.Parameter(torch.arange(41.0))
    found = check_identity(Reader(model), ROWS)
    assert found.kind == "W h + b" and found.plain > 0.1


def test_a_factor_and_a_soft_cap_are_found():
    granite = made("Granite", logits_scaling=4.0)
    found = check_identity(Reader(granite), ROWS)
    assert found.scale == pytest.approx(0.25, rel=1e-4) and found.difference < 1e-4
    gemma = made("Gemma2", head_dim=8, final_logit_softcapping=2.0)
    assert check_identity(Reader(gemma), ROWS).cap == 2.0


def test_what_breaks_the_identity_is_refused_with_the_difference():
    class Bent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.word, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)

        def get_output_embeddings(self):
            return self.head

        def forward(self, input_ids, attention_mask):
            return transformers.modeling_outputs.CausalLMOutput(logits=self.head(self.word(input_ids)) ** 3)

    with pytest.raises(BrokenIdentity, match=r"differ by 0\.\d+|differ by \d"):
        check_identity(Reader(Bent()), [[1, 2]])
    silent = Bent()
    silent.forward = lambda input_ids, attention_mask: transformers.modeling_outputs.CausalLMOutput(
        logits=silent.word(input_ids) @ silent.head.weight.T
    )
    with pytest.raises(BrokenIdentity, match="does not call its output head"):
        check_identity(Reader(silent), [[1, 2]])
    silent.get_output_embeddings = lambda: None
    with pytest.raises(BrokenIdentity, match="shows no output rows"):
        check_identity(Reader(silent), [[1, 2]])


# ---------------------------------------------------------------- k-means


def blobs(groups=5, each=20, width=6, seed=0):
    random = torch.Generator().manual_seed(seed)
    centers = 20 * torch.randn(groups, width, generator=random)
    group = torch.arange(groups).repeat_interleave(each)[torch.randperm(groups * each, generator=random)]
    return centers[group] + 0.1 * torch.randn(groups * each, width, generator=random), group


@pytest.mark.parametrize("cosine", [False, True])
def test_planted_blobs_are_recovered_exactly(cosine):
    keys, group = blobs()
    found = key_clusters(keys, 5, seed=1, cosine=cosine)
    pairs = set(zip(found.labels.tolist(), group.tolist(), strict=True))
    assert len(pairs) == 5  # one to one: the adjusted Rand index is 1
    assert found.sizes().tolist() == [20] * 5


def test_two_clusters_by_hand():
    # 0, 1 and 10, 12: centers 0.5 and 11, inertia 2 * 0.25 + 2 * 1
    found = key_clusters(torch.tensor([[0.0], [1.0], [10.0], [12.0]]), 2)
    assert sorted(found.centers[:, 0].tolist()) == pytest.approx([0.5, 11.0])
    assert found.inertia[-1] == pytest.approx(2.5)


def test_inertia_never_rises_and_a_seed_decides():
    keys = torch.randn(300, 8, generator=torch.Generator().manual_seed(2)) + 100  # a common part, as models have
    runs = [key_clusters(keys, 24, seed=seed, tolerance=0.0) for seed in (5, 5, 6)]
    assert torch.equal(runs[0].labels, runs[1].labels) and not torch.equal(runs[0].labels, runs[2].labels)
    for run in runs:
        assert len(run.inertia) > 2 and all(b <= a * (1 + 1e-9) for a, b in pairwise(run.inertia))
        assert bool((run.sizes() > 0).all())


def test_no_cluster_is_empty_even_of_copies():
    keys = torch.zeros(12, 3)
    keys[11] = 1.0
    found = key_clusters(keys, 6)
    assert bool((found.sizes() > 0).all()) and int(found.sizes().sum()) == 12


def test_rows_left_out_have_no_cluster():
    keys, group = blobs()
    kept = torch.ones(len(keys), dtype=torch.bool)
    keys[3], kept[3] = 1e6, False
    found = key_clusters(keys, 5, kept_V=kept)
    assert found.labels[3] == -1 and int(found.sizes().sum()) == len(keys) - 1
    assert float(found.centers.abs().max()) < 1e3


def test_impossible_clusters_are_refused():
    with pytest.raises(ValueError, match="5 clusters cannot be made of 4 keys"):
        key_clusters(torch.randn(4, 2), 5)
    with pytest.raises(ValueError, match="1 of 4 keys are not finite"):
        key_clusters(torch.tensor([[0.0], [math.nan], [1.0], [2.0]]), 2)


# ---------------------------------------------------------------- ranks


def test_a_query_equal_to_a_key_ranks_its_group_first():
    groups, each, width = 6, 20, 16
    centers = torch.nn.functional.normalize(torch.eye(groups, width), dim=-1)
    keys = (centers.repeat_interleave(each, 0) + 0.01 * torch.randn(groups * each, width)).contiguous()
    found = key_clusters(keys, groups)
    order = (keys @ keys[2 * each]).argsort(descending=True)[:each]
    assert set(order.tolist()) == set(range(2 * each, 3 * each))
    ranked = spurious(torch.ones(1, each, dtype=torch.bool), found.labels[order][None], main=10)
    assert ranked["share_main"] == 1.0 and ranked["share_other"] == 0.0 and math.isnan(ranked["acc_other"])


def test_the_split_of_ranks_by_hand():
    # Ranks 1-2 are of cluster 0. Behind them: 0 wrong, 1 right, 0 right, 2 wrong, in two strata of three ranks each.
    correct = torch.tensor([[True, True, False, True, True, False]])
    cluster = torch.tensor([[0, 0, 0, 1, 0, 2]])
    found = spurious(correct, cluster, main=2, strata=2)
    assert found["acc_main"] == 0.5 and found["rank_main"] == 4.0  # ranks 3 and 5
    assert found["acc_other"] == 0.5 and found["rank_other"] == 5.0  # ranks 4 and 6
    # stratum 1 is rank 3, of one group alone; stratum 2: other (1 + 0) / 2 minus main 1
    assert found["matched"] == pytest.approx(-0.5) and found["matched_weight"] == pytest.approx(2 / 3)


def test_equal_ranks_take_out_what_rank_alone_does():
    # Right up to rank 55, wrong behind; main tokens stand early. Raw accuracy favours main, at equal ranks neither.
    rank = torch.arange(1, 101)
    cluster = torch.where((rank <= 10) | (rank % 3 == 0) & (rank < 70), 0, 1)
    correct = rank <= 50
    found = spurious(correct[None], cluster[None])
    assert found["acc_main"] > found["acc_other"] + 0.2
    assert found["matched"] == pytest.approx(0.0, abs=1e-12)


def test_ranks_that_cannot_be_split():
    with pytest.raises(ValueError, match="more than 10 ranks"):
        spurious(torch.ones(1, 10, dtype=torch.bool), torch.zeros(1, 10, dtype=torch.long))


# ---------------------------------------------------------------- the bound, one step


def test_close_keys_cannot_be_parted():
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        u, v, h = (torch.randn(12, generator=random, dtype=torch.float64) for _ in range(3))
        assert abs(float((u - v) @ h)) <= float((u - v).norm() * h.norm()) + 1e-12


@pytest.mark.parametrize("biased", [False, True])
def test_one_step_moves_logits_as_the_formula_says(biased):
    random = torch.Generator().manual_seed(1)
    keys, start = torch.randn(30, 8, generator=random), torch.randn(8, generator=random)
    bias = torch.randn(30, generator=random) if biased else torch.zeros(30)
    for lr in (0.1, 0.2):
        query = start.clone().requires_grad_()
        torch.nn.functional.cross_entropy((keys @ query + bias)[None], torch.tensor([7])).backward()
        with torch.no_grad():
            moved = keys @ (query - lr * query.grad) - keys @ start
        torch.testing.assert_close(gain(keys, start, 7, lr, bias), moved, rtol=0, atol=1e-5)
    torch.testing.assert_close(gain(keys, start, 7, 0.2), 2 * gain(keys, start, 7, 0.1))


def test_push_and_lift_by_hand():
    # The query moves by (1, 0): logits move by 2, 0, 1, centred by their mean of 1.
    keys = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 1.0]])
    pushed = push(keys, torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert pushed.tolist() == [1.0, -1.0, 0.0]
    assert lift(pushed, torch.tensor([0, -1, 0])).tolist() == [0.5]


def test_leak_by_hand():
    # Tokens 0 and 1 are mates, 2 and 3 others. Token 0 was trained: gains 4, 2, -3, -3 have mean 0.
    labels, gained = torch.tensor([0, 0, 1, 1]), torch.tensor([[4.0, 2.0, -3.0, -3.0]])
    found = leak(gained, [0], labels, torch.tensor([[1, 3, 2, 4]]))
    assert found == {"trained": 4.0, "mates": 2.0, "control": -3.0, "leak": 0.5, "leak_control": -0.75}
