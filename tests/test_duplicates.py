"""Near duplicates: altered copies are found, other films are not, and the quick search misses nothing."""

import io
import itertools
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from cxrbench.data import duplicates, thumbnails
from cxrbench.data.duplicates import (
    LIKE,
    SIDE,
    close_hashes,
    difference_hashes,
    identical,
    near_duplicates,
    shrink,
)
from cxrbench.data.painter import paint_image, sample_cohort
from cxrbench.data.pixels import decode, resize
from cxrbench.data.thumbnails import (
    Thumbnails,
    find_alike,
    memory_of,
    read_thumbnails,
    write_thumbnails,
)

FILMS = 60


def thumbnail(film: np.ndarray) -> np.ndarray:
    return shrink(resize(np.ascontiguousarray(film), 2 * SIDE))


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    """Painted films of patients with several each."""
    return [paint_image(study, 192) for study in sample_cohort(FILMS, seed=5)]


def jpeg(film: np.ndarray, quality: int) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(film).save(packed, "JPEG", quality=quality)
    return np.asarray(Image.open(packed))


def lettered(film: np.ndarray) -> np.ndarray:
    image = Image.fromarray(film)
    size = film.shape[0] // 12
    ImageDraw.Draw(image).text((size, size), "R", 255, ImageFont.load_default(size))
    return np.asarray(image)


def cut(film: np.ndarray, share: float) -> np.ndarray:
    rows, columns = (round(share * side) for side in film.shape)
    return film[rows:-rows, columns:-columns]


def stretched(film: np.ndarray, by: float, more: float) -> np.ndarray:
    return np.clip(film * by + more, 0, 255).astype(np.uint8)


ALTERED = {
    "JPEG": lambda film: jpeg(film, 40),
    "half the size": lambda film: np.asarray(Image.fromarray(film).resize((96, 96))),
    "other proportions": lambda film: np.asarray(Image.fromarray(film).resize((140, 200))),
    "brighter": lambda film: stretched(film, 1.0, 25),
    "less contrast": lambda film: stretched(film, 0.7, 30),
    "gamma": lambda film: (255 * (film / 255) ** 1.3).astype(np.uint8),
    "a letter": lettered,
    "a narrow edge cut off": lambda film: cut(film, 0.006),
    "all at once": lambda film: jpeg(stretched(resize(lettered(film), 120), 0.9, 20), 60),
}


@pytest.mark.parametrize("how", ALTERED)
def test_altered_films_are_found_and_no_others(films, how):
    both = np.stack([thumbnail(f) for f in films] + [thumbnail(ALTERED[how](f)) for f in films])
    near = near_duplicates(both)
    assert near.complete
    right = near.pairs[:, 1] - near.pairs[:, 0] == FILMS
    assert right.sum() >= 0.9 * FILMS
    assert right.all(), near.pairs[~right]
    assert (near.likeness >= LIKE).all()


def test_films_of_the_same_and_of_other_patients_are_not_near(films):
    near = near_duplicates(np.stack([thumbnail(film) for film in films]))
    assert near.pairs.shape == (0, 2)
    assert near.complete
    assert not len(near.flat)


@pytest.mark.data
def test_real_films(samples: Path):
    """Every film is found in its other size; of other films none is taken for it."""
    kermany = samples / "kermany_sub"
    names = sorted(p.relative_to(kermany / "orig1024") for p in kermany.glob("orig1024/**/*.jpeg"))
    covid = sorted((samples / "covid_cxr" / "images").glob("*.jpg"))[:100]
    if not names or not covid:
        pytest.skip(f"{samples}: not all samples are there")
    paths = [kermany / folder / name for folder in ("orig1024", "full224") for name in names]
    near = near_duplicates(np.stack([thumbnail(decode(path)) for path in paths + covid]))
    assert near.pairs.tolist() == [[i, i + len(names)] for i in range(len(names))]
    assert near.likeness.min() > 0.99


# --- hashes and the search


def test_a_hash_tells_which_areas_are_brighter_than_those_above():
    falling = np.repeat(np.arange(SIDE, dtype=np.uint8)[:, None] * 4, SIDE, axis=1)
    hashes = difference_hashes(np.stack([falling, falling[::-1], falling // 2 + 90]))
    every = (1 << 64) - 1
    assert hashes.tolist() == [every, 0, every]
    left = falling.copy()
    left[:, SIDE // 2 :] = falling[::-1, : SIDE // 2]
    assert difference_hashes(left[None])[0] == int("f0" * 8, 16)


def brute(hashes: np.ndarray) -> set[tuple[int, int]]:
    return {
        (i, j)
        for i, j in itertools.combinations(range(len(hashes)), 2)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 4
    }


flips = st.lists(st.integers(0, 63), max_size=7).map(lambda bits: sum({1 << b for b in bits}))


@given(
    st.lists(st.tuples(st.integers(0, 3), flips), max_size=40),
    st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4),
    st.sampled_from([(1, 1), (1, 7), (2, 64), (64, 1 << 18)]),
)
@settings(max_examples=150, deadline=None)
def test_the_search_by_bands_finds_what_comparing_all_pairs_finds(members, centres, sizes):
    values = [centres[which] ^ flipped for which, flipped in members]
    hashes = np.array(values, dtype=np.uint64)
    with mock.patch.multiple(duplicates, SHORT=sizes[0], BLOCK=sizes[1]):
        found = [tuple(pair) for pairs in close_hashes(hashes) for pair in pairs.tolist()]
    assert len(found) == len(set(found))
    assert set(found) == brute(hashes)


def test_bands_share_out_all_bits():
    assert sum(int(mask).bit_count() for mask in duplicates.MASKS) == 64
    assert len(duplicates.MASKS) == duplicates.DISTANCE + 1


@pytest.mark.parametrize("chunk", [64, 4096])
def test_confirming_in_few_dimensions_loses_nothing(films, chunk):
    """Against the correlation of every pair with close hashes."""
    random = np.random.default_rng(0)
    base = np.stack([thumbnail(film) for film in films]).astype(np.float32)
    coarse = [
        40 * n / 150 * cv2.resize(random.normal(size=(16, 16)), (SIDE, SIDE)) for n in range(150)
    ]
    fine = [12 * n / 150 * random.normal(size=(SIDE, SIDE)) for n in range(150)]
    some = base[random.integers(0, 8, 300)] + np.stack(coarse + fine)
    blurred = np.clip(some, 0, 255).astype(np.uint8)
    vectors = duplicates._details(blurred)
    likeness = vectors @ vectors.T
    expected = {pair for pair in brute(difference_hashes(blurred)) if likeness[pair] >= LIKE}
    with mock.patch.object(duplicates, "CHUNK", chunk):
        near = near_duplicates(blurred)
    assert {tuple(pair) for pair in near.pairs.tolist()} == expected
    assert 20 < len(expected) < near.candidates
    for (i, j), value in zip(near.pairs, near.likeness, strict=True):
        assert value == pytest.approx(likeness[i, j], abs=1e-5)


def test_runs_that_are_too_long_are_passed_over_and_the_rest_is_searched():
    random = np.random.default_rng(0)
    other = random.integers(0, 2**63, 6, dtype=np.uint64)
    hashes = np.concatenate([np.zeros(50, np.uint64), other, other])
    passed_over: list[int] = []
    with mock.patch.object(duplicates, "MOST_COMPARISONS", 1000):
        found = np.concatenate(list(close_hashes(hashes, passed_over)))
    assert {tuple(pair) for pair in found.tolist()} == {(50 + i, 56 + i) for i in range(6)}
    assert passed_over == [50] * 5


def test_a_search_that_is_ended_says_so(films):
    copies = np.stack([thumbnail(films[0])] * 30)
    assert near_duplicates(copies).complete
    assert len(near_duplicates(copies).pairs) == 30 * 29 // 2
    for limit in ("MOST_COMPARISONS", "MOST_CANDIDATES"):
        with mock.patch.object(duplicates, limit, 100):
            near = near_duplicates(copies)
        assert not near.complete
        assert not len(near.pairs)


def test_images_that_show_nothing_are_left_out(films):
    random = np.random.default_rng(0)
    black = np.zeros((SIDE, SIDE), np.uint8)
    nearly = random.integers(100, 103, (3, SIDE, SIDE), dtype=np.uint8)
    film = thumbnail(films[0])
    near = near_duplicates(np.stack([black, film, *nearly, nearly[0], film]))
    assert near.flat.tolist() == [0, 2, 3, 4, 5]
    assert near.pairs.tolist() == [[1, 6]]


def test_no_image_has_no_near_duplicates():
    near = near_duplicates(Thumbnails.none().images)
    assert (len(near.pairs), near.candidates, near.complete) == (0, 0, True)


def test_identical_contents_are_grouped_and_unknown_ones_are_not():
    assert [rows.tolist() for rows in identical(["a", "", "b", "a", "", "a"])] == [[0, 3, 5]]


# --- what is remembered


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_pairs_are_joined_to_groups(pairs):
    leaders = thumbnails._leaders(np.array(pairs, dtype=np.int64).reshape(-1, 2), 20)
    groups = [{i} for i in range(20)]
    for first, second in pairs:
        joined = groups[first] | groups[second]
        for member in joined:
            groups[member] = joined
    assert leaders.tolist() == [min(group) for group in groups]


@pytest.fixture
def three(films) -> Thumbnails:
    """A film, its altered copy, and another film."""
    shown = [films[0], ALTERED["less contrast"](films[0]), films[30]]
    return Thumbnails(["a", "b", "c"], np.stack([thumbnail(film) for film in shown]))


def test_thumbnails_are_written_and_read(three, tmp_path):
    path = tmp_path / "cache" / "t.parquet"
    write_thumbnails(path, three)
    back = read_thumbnails(path)
    assert back.contents == three.contents
    assert (back.images == three.images).all()
    assert back.find(["c", "nothing", "", "a"]).tolist() == [2, -1, -1, 0]
    more = back.joined({"a": three.images[1], "d": three.images[2]})
    assert more.contents == ["a", "b", "c", "d"]
    assert (more.images == three.images[[0, 1, 2, 2]]).all()
    assert [p.name for p in path.parent.iterdir()] == ["t.parquet"]


def test_a_damaged_memory_is_no_memory(three, tmp_path):
    path = tmp_path / "t.parquet"
    assert read_thumbnails(path).contents == []
    write_thumbnails(path, three)
    path.write_bytes(path.read_bytes()[:-20])
    assert read_thumbnails(path).contents == []
    for thumbnail_ in (None, b"short", "text"):
        pd.DataFrame({"sha256": ["a"], "thumbnail": [thumbnail_]}).to_parquet(path)
        assert read_thumbnails(path).contents == []
    pd.DataFrame({"other": ["a"]}).to_parquet(path)
    assert read_thumbnails(path).contents == []


def test_near_contents_join_all_their_rows(three):
    alike = find_alike(["a", "c", "", "b", "a", "unseen"], three)
    ((rows, likeness),) = alike.groups
    assert rows.tolist() == [0, 3, 4]
    assert likeness >= LIKE
    assert alike.compared.tolist() == [True, True, False, True, True, False]
    assert alike.complete


def test_identical_contents_alone_are_no_near_duplicates(three):
    assert find_alike(["a", "a", "c"], three).groups == []


def test_the_same_images_are_searched_once(three, tmp_path):
    memory = tmp_path / "t.parquet"
    first = find_alike(["a", "b", "c"], three, memory)
    with mock.patch.object(thumbnails, "near_duplicates", side_effect=AssertionError):
        again = find_alike(["c", "b", "a", "a"], three, memory)
        assert [rows.tolist() for rows, _ in again.groups] == [[1, 2, 3]]
        assert again.groups[0][1] == pytest.approx(first.groups[0][1])
        with pytest.raises(AssertionError):  # fewer images are another search
            find_alike(["b", "c"], three, memory)
        with (
            mock.patch.object(duplicates, "LIKE", 0.5),  # so are other thresholds
            pytest.raises(AssertionError),
        ):
            find_alike(["a", "b", "c"], three, memory)


def test_what_decides_pixels_decides_the_memory(store):
    from cxrbench.data.kermany import Kermany
    from cxrbench.data.table import Table

    paths = {
        memory_of(Kermany, {}, store),
        memory_of(Kermany, {"task": "etiology"}, store),
        memory_of(Table, {}, store),
    }
    assert len(paths) == 3
    assert memory_of(Kermany, {}, store) in paths
