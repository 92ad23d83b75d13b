"""CamemBERT (https://arxiv.org/abs/1911.03894): RoBERTa on other text."""

from __future__ import annotations

from .roberta import roberta_card

CARD = roberta_card("camembert", "Camembert")
