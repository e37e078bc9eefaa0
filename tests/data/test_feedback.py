"""Likes and dislikes: how a run file says what they are, and what it may not say."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from distrib.data.logs.columns import Columns
from distrib.data.logs.feedback import FeedbackConfig
from distrib.data.logs.rating_scale import RatingsConfig, scale_of
from distrib.errors import ConfigError
from distrib.feedback import Feedback, sign_of
from distrib.vocabulary import LogFacts, Vocabulary

STARS = (1.0, 2.0, 3.0, 4.0, 5.0)
RATED = Columns(user="user", item="item", rating="rating")
NAN = float("nan")


def test_ratings_have_a_sign_by_two_thresholds():
    config = FeedbackConfig(likes_above=3.0, dislikes_up_to=2.0)
    values = [1.0, 2.0, 3.0, 3.5, 5.0, NAN]
    wanted = [-1, -1, 0, 1, 1, 0]
    assert config.feedback.sign(torch.tensor(values)).tolist() == wanted
    assert config.feedback.sign(np.array(values, np.float32)).tolist() == wanted
    one = FeedbackConfig(likes_above=2.0).feedback
    assert one.sign(torch.tensor(values)).tolist() == [-1, -1, 1, 1, 1, 0]
    assert sign_of(None, torch.tensor(values)).tolist() == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (["like", " hate ", "click", "", None], [1.0, -1.0, 0.0, NAN, NAN]),
        (["1", "0", "1.0", "2", "+1"], [1.0, -1.0, 1.0, 0.0, 1.0]),
        ([1, 0, 2, None], [1.0, -1.0, 0.0, NAN]),
        ([1.0, 0.0, 0.5], [1.0, -1.0, 0.0]),
        ([True, False, None], [1.0, -1.0, NAN]),
    ],
)
def test_marks_become_ratings_whatever_their_type(column, wanted):
    config = FeedbackConfig(likes=(" like", "1"), dislikes=("hate", "0"))
    found = config.ratings_of(pa.chunked_array([pa.array(column)]))
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))
    categories = pa.array([str(value) for value in column]).dictionary_encode()
    assert len(config.ratings_of(pa.chunked_array([categories]))) == len(column)


def test_marks_of_a_column_of_booleans_are_true_and_false():
    config = FeedbackConfig(likes=("true",), dislikes=("false",))
    found = config.ratings_of(pa.chunked_array([pa.array([True, False, None])]))
    np.testing.assert_array_equal(found, np.array([1.0, -1.0, NAN], np.float32))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "set either likes_above"),
        ({"likes_above": 3.0, "likes": ("a",), "dislikes": ("b",)}, "set either likes_above"),
        ({"likes": ("a",)}, "likes and dislikes belong together"),
        ({"likes": ("a", "b"), "dislikes": ("b ",)}, r"\['b'\]: both a like and a dislike"),
        ({"likes": ("1",), "dislikes": ("1.0",)}, r"\['1.0'\]: both a like and a dislike"),
        ({"likes": ("a", " "), "dislikes": ("b",)}, "an empty mark"),
        ({"dislikes_up_to": 2.0}, "dislikes_up_to needs likes_above"),
        ({"likes_above": 2.0, "dislikes_up_to": 3.0}, "is above likes_above"),
    ],
)
def test_a_setting_that_says_nothing_or_two_things_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        FeedbackConfig(**settings)


MARKS = FeedbackConfig(likes=("like",), dislikes=("hate",))


@pytest.mark.parametrize(
    ("feedback", "ratings", "columns", "why"),
    [
        (FeedbackConfig(likes_above=5.0), {}, RATED, "so nothing is a like; lower it"),
        (FeedbackConfig(likes_above=0.5), {}, RATED, "likes_above = 0.5: every level"),
        (
            FeedbackConfig(likes_above=3.0, dislikes_up_to=0.5),
            {},
            RATED,
            "dislikes_up_to = 0.5: every level",
        ),
        (MARKS, {}, Columns(user="user", item="item"), "no rating column; map the column"),
        (MARKS, {"levels": STARS}, RATED, "marks are no ratings; remove the levels"),
        (FeedbackConfig(likes_above=3.0), {"confidence": "log"}, RATED, "weights have no sign"),
    ],
)
def test_likes_that_no_row_can_be_are_refused(feedback, ratings, columns, why):
    known = None if "confidence" in ratings or feedback is MARKS else STARS
    with pytest.raises(ConfigError, match=why):
        scale_of(RatingsConfig(**ratings), known, columns, "last", feedback)


def test_marks_make_a_scale_of_their_own():
    scale = scale_of(RatingsConfig(), None, RATED, "last", MARKS)
    assert scale.levels == (-1.0, 0.0, 1.0)
    read, _ = scale.read(pa.chunked_array([["hate", "like", "click", ""]]))
    assert scale.holds(read[:3]).all()
    assert np.isnan(read[3])


def test_a_vocabulary_keeps_what_likes_are():
    counts = np.ones((2, 5), np.int64)
    feedback = Feedback(3.0, 2.5)
    kept = Vocabulary(pa.array([1, 2]), STARS, counts, 3, 4, LogFacts(feedback))
    found = Vocabulary.from_table(kept.to_table())
    assert found.facts.feedback == found.catalog.feedback == feedback
    plain = Vocabulary(pa.array([1, 2]), STARS, counts, 3, 4)
    assert Vocabulary.from_table(plain.to_table()).facts == LogFacts()
    assert plain.fingerprint == kept.fingerprint
