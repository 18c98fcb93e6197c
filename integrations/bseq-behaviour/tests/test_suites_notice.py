"""The suites are worth something only if they notice: heads with one fault each, and the test that has to find it."""

from dataclasses import replace

import pytest
import torch
from bseq_behaviour.heads.catalogue import OwnLayerHead
from bseq_behaviour.heads.counts import KeptShareHead
from bseq_behaviour.heads.mlp import MlpHead
from bseq_behaviour.heads.transformer import TransformerHead
from bseq_behaviour.testing.heads import BinaryHeadTests, CatalogueHeadTests, CountHeadTests
from bseq_behaviour.testing.sequence_heads import SequenceHeadTests
from torch.nn import functional as F


class Centred(MlpHead):
    def forward(self, vectors_ND):
        return super().forward(vectors_ND - vectors_ND.mean(0))


class Unlearned(MlpHead):
    def forward(self, vectors_ND):
        return super().forward(vectors_ND).detach() + 0 * self.linear.bias


class RunningMean(MlpHead):
    """What it learns beside its weights is a plain attribute."""

    seen = 0.0

    def forward(self, vectors_ND):
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * vectors_ND.detach().mean(0)
        return super().forward(vectors_ND - self.seen)


class Unsaved(OwnLayerHead):
    """The same in a buffer that is left out of its state."""

    def __init__(self, dim, options=None):
        super().__init__(dim, options)
        self.register_buffer("most", torch.ones(()), persistent=False)

    def forward(self, interests_BKD):
        if self.training and len(interests_BKD):
            self.most = torch.maximum(self.most, interests_BKD.detach().abs().max())
        return super().forward(interests_BKD / self.most)


class Unregistered(KeptShareHead):
    """A layer in a list of Python, which torch does not know of."""

    def __init__(self, dim, usual_C, options=None):
        super().__init__(dim, usual_C, options)
        self.layers = [torch.nn.Linear(dim, dim)]

    def forward(self, vectors_ND, recent_NC):
        return super().forward(self.layers[0](vectors_ND), recent_NC)


class Counting(TransformerHead):
    """How often it was asked in training goes into its answers, and is forgotten."""

    asked = 0

    def forward(self, memory, items_BJ, types_BJ):
        self.asked += self.training
        logits, type_logits = super().forward(memory, items_BJ, types_BJ)
        return logits, type_logits * (1 + self.asked)


class Cut(OwnLayerHead):
    def forward(self, interests_BKD):
        return interests_BKD.detach() + self.own(interests_BKD.detach())


class Mixed(OwnLayerHead):
    def forward(self, interests_BKD):
        return interests_BKD + interests_BKD.sum(0)


class Negative(KeptShareHead):
    def forward(self, vectors_ND, recent_NC):
        return self.linear(vectors_ND)


class Shared(KeptShareHead):
    def forward(self, vectors_ND, recent_NC):
        return super().forward(vectors_ND, recent_NC.flip(0))


class Told(TransformerHead):
    """Each step reads its own answer."""

    def forward(self, memory, items_BJ, types_BJ):
        return super().forward(memory, F.pad(items_BJ[:, 1:], (0, 1)), types_BJ)


class OneTypeTold(TransformerHead):
    def forward(self, memory, items_BJ, types_BJ):
        logits, type_logits = super().forward(memory, items_BJ, types_BJ)
        return logits, type_logits + F.one_hot(types_BJ, self.n_event_types + 1)


class Padded(TransformerHead):
    def forward(self, memory, items_BJ, types_BJ):
        return super().forward(replace(memory, padded_BM=torch.zeros_like(memory.padded_BM)), items_BJ, types_BJ)


class OtherUsers(TransformerHead):
    def forward(self, memory, items_BJ, types_BJ):
        return super().forward(replace(memory, interest_BD=memory.interest_BD.flip(0)), items_BJ, types_BJ)


class StepsApart(TransformerHead):
    """A cheaper step that is not what it was taught."""

    def step(self, memory, items_BJ, types_BJ):
        return super().step(memory, torch.zeros_like(items_BJ), types_BJ)


class Unknown(TransformerHead):
    """The unknown item may be an answer."""

    def forward(self, memory, items_BJ, types_BJ):
        logits, type_logits = super().forward(memory, items_BJ, types_BJ)
        return logits.nan_to_num(neginf=0.0), type_logits


class Endless(TransformerHead):
    """Steps that it does not have are left out, silently."""

    def forward(self, memory, items_BJ, types_BJ):
        return super().forward(memory, items_BJ[:, : self.n_steps], types_BJ[:, : self.n_steps])


@pytest.mark.parametrize(
    ("suite", "head", "test"),
    [
        (BinaryHeadTests, Centred, "test_rows_do_not_look_at_each_other"),
        (BinaryHeadTests, Unlearned, "test_it_learns_tasks_that_disagree"),
        (BinaryHeadTests, RunningMean, "test_its_weights_are_all_that_it_learned"),
        (CatalogueHeadTests, Unsaved, "test_its_weights_are_all_that_it_learned"),
        (CountHeadTests, Unregistered, "test_its_weights_are_all_that_it_learned"),
        (SequenceHeadTests, Counting, "test_its_weights_are_all_that_it_learned"),
        (BinaryHeadTests, KeptShareHead, "test_it_has_a_name_and_is_of_its_kind"),
        (CatalogueHeadTests, Cut, "test_an_item_for_each_user_is_learned_with_the_interests"),
        (CatalogueHeadTests, Mixed, "test_users_do_not_look_at_each_other"),
        (CountHeadTests, Negative, "test_shape_signs_and_no_rows"),
        (CountHeadTests, Shared, "test_rows_do_not_look_at_each_other"),
        (SequenceHeadTests, Told, "test_a_later_step_changes_no_earlier_answer"),
        (SequenceHeadTests, OneTypeTold, "test_a_later_step_changes_no_earlier_answer"),
        (SequenceHeadTests, Padded, "test_padding_is_not_read"),
        (SequenceHeadTests, OtherUsers, "test_users_do_not_look_at_each_other"),
        (SequenceHeadTests, StepsApart, "test_steps_one_after_the_other_are_those_of_all_at_once"),
        (SequenceHeadTests, Unknown, "test_shape_and_no_users"),
        (SequenceHeadTests, Endless, "test_more_steps_than_it_has_are_refused"),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_fault_is_found(suite, head, test):
    mine = type("Mine", (suite,), {"head": head})()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(mine, test)()


class Tied(MlpHead):
    """One layer under two names."""

    def __init__(self, dim, n_tasks, options=None):
        super().__init__(dim, n_tasks, options)
        self.again = self.linear


class TestTied(BinaryHeadTests):
    head = Tied
