"""The fixtures of the frameworks' tests: a tiny vocabulary and a random RN-mini."""

from tests.frameworks.conftest import clip, text, vocabulary

__all__ = ["clip", "text", "vocabulary"]
