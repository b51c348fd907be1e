"""The 25 verifiable instructions of IFEval (arXiv 2311.07911, table 1): whether a text follows one.

Names and arguments are those of the published data, and the rules those of the published checkers, but for two that
need a trained model there: sentences are told apart by punctuation, and words in capitals by letters. Languages are
told by `langdetect`, as there; it errs on short texts, and more often on capitals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.errors import UnknownNameError, did_you_mean

Check = Callable[..., bool]

CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|No|Inc|Ltd|Co|e\.g|i\.e|Ph\.D|[A-Z])\.$")
_NUMBER = re.compile(r"(?:^|\s)\(?\d+\.$")


def follows(text: str, instruction: str, arguments: Mapping[str, Any]) -> bool:
    """Whether `text` is not empty and follows an instruction; arguments that are None are left out.

    UnknownNameError for an instruction that IFEval does not have.
    """
    check = CHECKS.get(instruction)
    if check is None:
        raise UnknownNameError(f"ifeval: {instruction!r} is no instruction; {did_you_mean(instruction, CHECKS)}")
    given = {name: value for name, value in arguments.items() if value is not None}
    return bool(text.strip()) and check(text, **given)


def loosened(text: str) -> list[str]:
    """The text and its variants of the loose accuracy (section 2.2): without first or last line, without asterisks."""
    lines = text.split("\n")
    cuts = (text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    return [*cuts, *(one.replace("*", "") for one in cuts)]


def sentences(text: str) -> list[str]:
    """The sentences of a text: each ends with . ! or ? before a space, unless that is an abbreviation or a number."""
    found: list[str] = []
    start = 0
    for end in re.finditer(r"[.!?]+[\"'”’)\]*]*(?=\s|$)", text):
        sentence = text[start : end.end()].strip()
        if not _ABBREVIATIONS.search(sentence) and not _NUMBER.search(sentence):
            found.append(sentence)
            start = end.end()
    rest = text[start:].strip()
    return [*found, rest] if rest else found


def is_language(text: str, language: str) -> bool:
    """Whether `text` is in the language (ISO 639-1); a text without letters is in every one."""
    from langdetect import DetectorFactory, LangDetectException, detect  # type: ignore[import-untyped]

    DetectorFactory.seed = 0  # it draws
    try:
        return bool(detect(text) == language)
    except LangDetectException:
        return True


def _compared(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _has_keywords(text: str, keywords: list[str]) -> bool:
    return all(re.search(re.escape(one), text, re.IGNORECASE) for one in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compared(len(re.findall(re.escape(keyword), text, re.IGNORECASE)), relation, frequency)


def _no_forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(one)}\b", text, re.IGNORECASE) for one in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compared(len(sentences(text)), relation, num_sentences)


def _words(text: str, num_words: int, relation: str) -> bool:
    return _compared(len(re.findall(r"\w+", text)), relation, num_words)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs apart by ***; an empty one counts at neither end, and spoils it in between."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = [part for index, part in enumerate(parts) if part.strip() or 0 < index < len(parts) - 1]
    return all(part.strip() for part in inner) and len(inner) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Of paragraphs apart by an empty line, how many there are, and how the n-th begins."""
    parts = text.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > filled or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"').lower()
    return filled == num_paragraphs and re.split(r"[.,?!'\"]", word)[0] == first_word.lower()


def _postscript(text: str, postscript_marker: str) -> bool:
    usual = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(usual.get(postscript_marker, re.escape(postscript_marker.lower())), text.lower()))


def _bullets(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    single = [one for one in re.findall(r"\*[^\n\*]*\*", text) if one.strip("*").strip()]
    double = [one for one in re.findall(r"\*\*[^\n\*]*\*\*", text) if one[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections


def _json(text: str) -> bool:
    inner = re.sub(r"^```(?:json|Json|JSON)?|```$", "", text.strip()).strip()
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str) -> bool:
    """Two different texts apart by six asterisks."""
    parts = text.split("******")
    inner = [part.strip() for index, part in enumerate(parts) if part.strip() or 0 < index < len(parts) - 1]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"[^\W_][\w'’-]*", text)
    return _compared(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _quoted(text: str) -> bool:
    inner = text.strip()
    return len(inner) > 1 and inner[0] == inner[-1] == '"'


CHECKS: dict[str, Check] = {
    "keywords:existence": _has_keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _no_forbidden,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": is_language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[.*?\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text: any(one in text for one in CONSTRAINED),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda text: any(
        one.lstrip("<").rstrip(">").strip() for one in re.findall(r"<<[^\n]+>>", text)
    ),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:end_checker": lambda text, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text: text.isupper() and is_language(text, "en"),
    "change_case:english_lowercase": lambda text: text.islower() and is_language(text, "en"),
    "punctuation:no_comma": lambda text: "," not in text,
}
"""Each instruction's check: of the text, and of the arguments that the data has for it."""
