"""From rows to ranked boards, and from votes to ratings."""
